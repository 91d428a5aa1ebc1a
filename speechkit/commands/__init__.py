"""What the subcommands of `speechkit` do, a module each."""
