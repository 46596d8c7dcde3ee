"""Threat models: what the attacker is granted, and the only door to an `Observation`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from torch import Tensor

from medpfl.aggregates import Aggregate
from medpfl.errors import ConfigurationError, MedpflError, ThreatModelError
from medpfl.planted import Planted
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import Range
from medpfl.training import LocalTraining
from medpfl.types import ClientUpdate, DataSpec, DefenseFacts, Observation, ServerPayload

CAPABILITIES = {
    "num_examples": "how many images are behind the update",
    "labels": "the images' labels",
    "local_training": "how the client computed its update",
    "local_order": "in which order the client took its images",
    "buffers": "the BatchNorm statistics that leave with the update",
    "defense": "the parameters of the client's defense",
    "auxiliary": "public images of the modality, none of them attacked",
    "same_images": "which earlier updates are of the same images",
}

AuxiliaryImages = Annotated[int, Range(8, 10_000)]

_OF_TRAINING: Mapping[str, tuple[str, ...]] = {
    "full": ("local_training", "local_order"),
    "partial": ("local_training",),
    "none": (),
}


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """Who sees the update, and what else they know.

    The server always knows what it sent, the update, and the kind of data (shape, classes,
    normalisation). Everything else is a capability, granted by name.

    Args:
        server: ``honest_but_curious``: follows the protocol, and looks. ``malicious``: also changes
            the model before clients get it, as the group ``server`` says.
        knows: capabilities granted, of `CAPABILITIES`.
        local_training: how much of the clients' local training is known, whatever `knows` says of
            it. ``full``: steps, batch size, learning rate and the order of the images;
            ``partial``: all but the order; ``none``. None leaves it to `knows`.
        aggregation: ``individual``: the server sees each client's own update. ``secure``: the mean
            over the clients of a round alone, and with `num_examples` how many images each has.
            ``running``: the running update of the clients that the code of MIC makes, which is no
            mean, see `medpfl.federated.running`; for a malicious server.
            None: as ``defense`` has it, which holds secure aggregation or does not.
        auxiliary_images: how many public images there are at most, where these are granted.
    """

    server: Literal["honest_but_curious", "malicious"] = "honest_but_curious"
    knows: Sequence[str] = ()
    local_training: Literal["full", "partial", "none"] | None = None
    aggregation: Literal["individual", "secure", "running"] | None = None
    auxiliary_images: AuxiliaryImages = 256

    def __post_init__(self) -> None:
        if self.server not in ("honest_but_curious", "malicious"):
            raise ConfigurationError(
                f"threat.server={self.server}: choose honest_but_curious or malicious"
            )
        if self.aggregation not in ("individual", "secure", "running", None):
            raise ConfigurationError(
                f"threat.aggregation={self.aggregation}: choose individual, secure, running or null"
            )
        if self.aggregation == "running" and self.server != "malicious":
            raise ConfigurationError(
                "threat.aggregation=running is what the code of MIC makes of clients' updates, for "
                f"a malicious server to read; with threat.server={self.server} choose secure"
            )
        if isinstance(self.knows, str):
            raise ConfigurationError(
                f"threat.knows={self.knows}: must be a list, such as threat.knows=[{self.knows}]"
            )
        if self.local_training not in (*_OF_TRAINING, None):
            raise ConfigurationError(
                f"threat.local_training={self.local_training}: choose {', '.join(_OF_TRAINING)}, "
                "or null"
            )
        check_value("threat.auxiliary_images", self.auxiliary_images, AuxiliaryImages)
        unknown = sorted(set(self.knows) - set(CAPABILITIES))
        if unknown:
            raise ConfigurationError(
                f"threat.knows: unknown capability {', '.join(unknown)}; "
                f"choose from {', '.join(CAPABILITIES)}"
            )

    @property
    def granted(self) -> tuple[str, ...]:
        """The capabilities granted, in the order of `CAPABILITIES`."""
        names = set(self.knows)
        if self.local_training is not None:
            names -= set(_OF_TRAINING["full"])
            names |= set(_OF_TRAINING[self.local_training])
        return tuple(name for name in CAPABILITIES if name in names)

    def require(self, capabilities: Iterable[str], *, who: str) -> None:
        """Raise a `ThreatModelError` where `who` needs a capability that is withheld."""
        missing = sorted(set(capabilities) - set(self.granted))
        if missing:
            what = "; ".join(f"'{name}' ({CAPABILITIES[name]})" for name in missing)
            knows = ",".join([*self.granted, *missing])
            raise ThreatModelError(
                f"{who} needs {what}, which the threat model withholds. Grant it with "
                f"'threat.knows=[{knows}]', or choose an attack that does without."
            )

    def unaware(self, defense: Sequence[DefenseFacts]) -> str | None:
        """Say that the attacker is not told of a client's defense; None where that changes nothing.

        No attack matches through what clients did before their sum was taken.

        Args:
            defense: what there is to know of it.
        """
        if not defense or "defense" in self.granted or self.aggregation in ("secure", "running"):
            return None
        knows = ",".join([*self.granted, "defense"])
        names = ", ".join(facts.name for facts in defense)
        return (
            f"this attacker does not know that clients use {names}, and real ones may: images that "
            f"it misses are not thereby safe. See what one does that knows: threat.knows=[{knows}]"
        )

    def observe(
        self,
        *,
        capture_id: str,
        payload: ServerPayload,
        update: ClientUpdate,
        spec: DataSpec,
        parameters: Collection[str] | None = None,
        defense: Sequence[DefenseFacts] | None = (),
        auxiliary: Tensor | None = None,
        same_images: Sequence[Observation] = (),
        planted: Planted | None = None,
    ) -> Observation:
        """Return what the attacker sees of an update: the granted part, nothing more.

        Args:
            capture_id: a name for it that says nothing of the images.
            payload: what the client was sent.
            update: what came back.
            spec: the kind of data.
            parameters: names of those whose update was captured; None for all.
            defense: what there is to know of the client's defense; None where nobody knows.
            auxiliary: `(A, C, *S)` in [0, 1]: public images; None where there are none.
            same_images: what was seen of the same images before, first to last.
            planted: what the server put into the model: its own secret, which it needs no grant of.

        Raises:
            MedpflError: the update is not one of the network that was sent.
        """
        _check_fit(update, payload, capture_id, parameters)
        return Observation(
            capture_id=capture_id,
            payload=payload,
            tensors={
                name: tensor
                for name, tensor in update.tensors.items()
                if parameters is None or name in parameters
            },
            kind=update.kind,
            spec=spec,
            num_examples=update.num_examples if "num_examples" in self.granted else None,
            labels=update.labels if "labels" in self.granted else None,
            local_training=self.known_training(update.local_training),
            buffers=update.buffers if "buffers" in self.granted else None,
            defense=tuple(defense) if defense is not None and "defense" in self.granted else None,
            auxiliary=auxiliary if "auxiliary" in self.granted else None,
            aggregate=self._known_aggregate(update.aggregate),
            same_images=(
                tuple(replace(seen, same_images=None) for seen in same_images)
                if "same_images" in self.granted
                else None
            ),
            planted=planted,
        )

    def _known_aggregate(self, aggregate: Aggregate | None) -> Aggregate | None:
        """Return what is known of a sum; who is in it and the step, the server knows itself."""
        if aggregate is None:
            return None
        granted = self.granted
        return aggregate.known(
            sizes="num_examples" in granted,
            orders={"num_examples", "local_training", "local_order"} <= {*granted},
        )

    def known_training(self, training: LocalTraining | None) -> LocalTraining | None:
        """Return what is known of a client's local training; None where nothing is."""
        if training is None or "local_training" not in self.granted:
            return None
        return training if "local_order" in self.granted else replace(training, order=None)

    def describe(self, clients: str | None = None) -> tuple[str, ...]:
        """Return the threat model in lines for people.

        Args:
            clients: of sums over clients, over how many, in words; None where single clients'
                updates are seen.
        """
        withheld = [name for name in CAPABILITIES if name not in self.granted]
        always = ["the model it sent", "the update", "the kind of data"]
        return (
            f"{self.server.replace('_', '-')} server, sees "
            + ("individual updates" if clients is None else f"sums of {clients} clients"),
            f"knows: {', '.join([*always, *self.granted])}",
            f"withheld: {', '.join(withheld) or 'nothing'}",
        )


def _check_fit(
    update: ClientUpdate,
    payload: ServerPayload,
    capture_id: str,
    parameters: Collection[str] | None,
) -> None:
    """Refuse an update whose tensors are not those of the network, name by name."""
    sent = {name: tuple(p.shape) for name, p in payload.parameters.items()}
    came = {name: tuple(t.shape) for name, t in update.tensors.items()}
    expected = {*came, *(sent if parameters is None else parameters)}
    names = sorted(n for n in expected if sent.get(n) != came.get(n))
    if not names:
        return
    faults = [f"{n}: sent {sent.get(n, 'none')}, came back {came.get(n, 'none')}" for n in names]
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    raise MedpflError(
        f"the update of {capture_id} does not fit the network that the client was sent "
        f"({'; '.join(faults[:3])}{more}). Client and server must use the same model settings."
    )
