"""The root of the address, where the clients of Vosk and of sherpa-onnx look for their servers."""

from collections.abc import Sequence

from speechkit.streaming.adapters.adapter import About, Action, Adapter, RefusalError
from speechkit.streaming.adapters.sherpa import Sherpa
from speechkit.streaming.adapters.vosk import Vosk
from speechkit.streaming.event import Event


class Rooted(Adapter):
    """Vosk's protocol where the first message is JSON, sherpa-onnx' where it is audio or ``Done``.

    Args:
        rate: of the model, Hz.
    """

    name = "root"

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._inner: Adapter | None = None

    def hear(self, message: str | bytes) -> Sequence[Action]:
        """As `Adapter.hear`."""
        if self._inner is None:
            vosk = isinstance(message, str) and message.lstrip().startswith("{")
            self._inner = Vosk(self.rate) if vosk else Sherpa(self.rate)
            self.name = self._inner.name
            return (*self._inner.begin(), *self._inner.hear(message))
        return self._inner.hear(message)

    def opened(self, about: About, resumed: bool) -> Sequence[str]:
        """As `Adapter.opened`."""
        return self._chosen.opened(about, resumed)

    def tell(self, number: int, event: Event) -> Sequence[str]:
        """As `Adapter.tell`."""
        return self._chosen.tell(number, event)

    def polled(self) -> str:
        """As `Adapter.polled`."""
        return self._chosen.polled()

    def fail(self, refusal: RefusalError) -> Sequence[str]:
        """As `Adapter.fail`."""
        return () if self._inner is None else self._inner.fail(refusal)

    @property
    def _chosen(self) -> Adapter:
        if self._inner is None:
            raise RefusalError(1011, "internal", "no protocol was chosen yet")
        return self._inner
