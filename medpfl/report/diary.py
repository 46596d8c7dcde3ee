"""What a run keeps of its federation's training: ``rounds.csv`` and ``checkpoints/``.

Checkpoints are trained on patients' images: like everything in a run's folder, they are readable by
their owner alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medpfl._atomic import make_private_folder, replacing
from medpfl.defenses import ClientState
from medpfl.errors import MedpflError
from medpfl.federated.diary import GlobalModel
from medpfl.federated.evaluate import Utility
from medpfl.report.rounds_file import RoundScore, read_rounds, write_rounds
from medpfl.types import ServerPayload

ROUNDS, CHECKPOINTS = "rounds.csv", "checkpoints"
_BUFFER, _STATE = "buffer:", "state:"


class RunDiary:
    """See `medpfl.federated.diary.Diary`.

    The models of captured rounds are kept, and of the others the last: whoever resumes goes on from
    there. With each lies what the clients' defenses keep from round to round.

    Args:
        folder: the run's.
        captured: rounds whose models stay.
        device: where models are wanted.
        told: called with what is going on, in words.
    """

    def __init__(
        self,
        folder: Path,
        *,
        captured: Collection[int],
        device: str,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._folder, self._captured, self._device = folder, frozenset(captured), device
        self._told = told
        self._last: Path | None = None
        path = folder / ROUNDS
        self._scores = {s.round: s for s in read_rounds(path)} if path.exists() else {}

    def begins(self, round_: int, rounds: int) -> None:
        """Say it."""
        self._told(f"training, round {round_} of {rounds}")

    def ended(
        self,
        round_: int,
        payload: ServerPayload,
        utility: Utility | None,
        states: Mapping[int, ClientState],
    ) -> None:
        """Write the row of a round, its model, and what the clients' defenses keep by then."""
        if utility is not None:
            self._scores[round_] = RoundScore(
                round=round_,
                accuracy=utility.accuracy,
                balanced_accuracy=utility.balanced_accuracy,
                auc=utility.auc,
                loss=utility.loss,
            )
            write_rounds(self._folder / ROUNDS, [self._scores[r] for r in sorted(self._scores)])
        make_private_folder(self._folder / CHECKPOINTS)
        path = self._folder / CHECKPOINTS / f"round-{round_:03d}.safetensors"
        tensors = {name: p.contiguous() for name, p in payload.parameters.items()}
        tensors |= {f"{_BUFFER}{name}": b.contiguous() for name, b in payload.buffers.items()}
        tensors |= {name: t.contiguous() for name, t in _named(states)}
        with replacing(path) as file:
            file.write(save(tensors, metadata={"round": str(round_)}))
        if self._last is not None:
            self._last.unlink(missing_ok=True)
        self._last = None if round_ in self._captured else path

    def latest(self, at_most: int) -> GlobalModel | None:
        """Read the latest model of no later round; see `Diary.latest`.

        Raises:
            MedpflError: it cannot be read.
        """
        found = sorted((self._folder / CHECKPOINTS).glob("round-*.safetensors"))
        early = [(int(path.stem.partition("-")[2]), path) for path in found]
        usable = [(number, path) for number, path in early if number <= at_most]
        if not usable:
            return None
        number, path = max(usable)
        try:
            with safe_open(path, framework="pt", device=self._device) as file:
                # Copied to where torch puts its own: matrix routines sum in another order where
                # numbers begin at another address, and the run would end in other last digits.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise MedpflError(
                f"{path} cannot be read ({error}): delete it, and the training goes on from an "
                "earlier round"
            ) from error
        own = {n: t for n, t in tensors.items() if not n.startswith((_BUFFER, _STATE))}
        kept = {n.removeprefix(_BUFFER): t for n, t in tensors.items() if n.startswith(_BUFFER)}
        self._last = None if number in self._captured else path
        return GlobalModel(number, own, kept, _states_in(tensors))


def _named(states: Mapping[int, ClientState]) -> Iterator[tuple[str, Tensor]]:
    """Yield what clients keep, named by client, part and tensor."""
    for client, parts in states.items():
        for part, kept in parts.items():
            for name, tensor in kept.items():
                yield f"{_STATE}{client}/{part}/{name}", tensor


def _states_in(tensors: Mapping[str, Tensor]) -> dict[int, ClientState]:
    """Return what `_named` named."""
    states: dict[int, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        if key.startswith(_STATE):
            client, part, name = key.removeprefix(_STATE).split("/", 2)
            states.setdefault(int(client), {}).setdefault(part, {})[name] = tensor
    return dict(states)
