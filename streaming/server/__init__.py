"""The streaming server: websockets and HTTP around sessions that are computed elsewhere."""
