"""Settings against the signatures of what they are for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import pytest
from omegaconf import OmegaConf

from medpfl.errors import ConfigurationError
from medpfl.settings.check import check_settings
from medpfl.settings.ranges import Range


class Part(Protocol):
    def __call__(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Whole:
    count: Annotated[int, Range(1, 100)]
    ratio: float = 0.5
    name: str | None = None
    on: bool = True
    mode: Literal["fast", "slow"] = "fast"
    sizes: int | Sequence[int] = 1
    part: Part | None = None
    must: Part
    anything: Any = None
    share: Annotated[float, Range(0, 1, "(]"), "a half will do"] = 1.0
    shares: Sequence[Annotated[float, Range(0, 1, "[)")]] = ()
    parts: Mapping[str, Part | None] | None = None


class Leaf:
    def __call__(self) -> None: ...


HERE = f"{__name__}.Whole"
LEAF = {"_target_": f"{__name__}.Leaf"}
PART = {"_target_": HERE, "count": 1, "must": LEAF}
SOUND = {"_target_": HERE, "count": 1, "must": LEAF}


def check(**settings: object) -> None:
    check_settings(OmegaConf.create({"group": {**SOUND, **settings}}).group)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"count": 1, "ratio": 1, "name": "a", "on": False, "mode": "slow"},
        {"ratio": 1e-3, "name": None, "sizes": [1, 2], "part": PART, "anything": [{}, None]},
        {"sizes": 4, "mode": "unknown to the type, refused by the constructor"},
    ],
)
def test_values_of_the_right_type_pass(settings: dict[str, object]) -> None:
    check(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": "x"}, "group.count=x: must be an integer"),
        ({"count": 1.0}, "group.count=1.0: must be an integer"),
        ({"count": True}, "group.count=true: must be an integer"),
        ({"count": None}, "group.count=null: must be an integer"),
        ({"ratio": "x"}, "group.ratio=x: must be a number"),
        ({"ratio": [0.5]}, "group.ratio=[0.5]: must be a number"),
        ({"name": 7}, "group.name=7: must be text or null"),
        ({"on": 1}, "group.on=1: must be true or false"),
        ({"mode": 3}, "group.mode=3: must be fast or slow"),
        ({"sizes": [1, "x"]}, "must be an integer or a list of integers in square brackets"),
        ({"part": "x"}, "group.part=x: must be a group with a _target_ or null"),
        ({"must": None}, "group.must=null: must be a group with a _target_"),
        ({"must": {}}, "group.must={}: must be a group with a _target_"),
        ({"part": {**PART, "count": "x"}}, "group.part.count=x: must be an integer"),
        ({"other": 1}, "group.other: no such setting; choose from count, ratio"),
        ({"sizes": ["???"]}, "Missing mandatory value: group.sizes[0]"),
        ({"count": 10**30}, f"group.count={10**30}: must be at least 1 and at most 100"),
        ({"ratio": math.nan}, "group.ratio=nan: must be a finite number"),
        ({"share": 2.0}, "group.share=2.0: must be positive and at most 1; a half will do"),
        ({"share": "x"}, "group.share=x: must be a number; a half will do"),
        ({"share": math.inf}, "group.share=inf: must be a finite number; a half will do"),
        ({"share": 10**400}, "must be a finite number; a half will do"),
        ({"shares": [0.5, -1]}, "must be a list of numbers, each at least 0 and below 1, in sq"),
        ({"parts": 5}, "group.parts=5: must be a group"),
        ({"parts": {"one": 5}}, "group.parts.one=5: must be a group with a _target_ or null"),
        ({"_partial_": True}, "group._partial_=true: is for functions, and Whole is a class"),
        ({"_partial_": 1}, "group._partial_=1: must be true or false"),
        ({"_recursive_": False}, "group._recursive_: leave it out"),
        ({"_convert_": "none"}, "group._convert_: leave it out"),
        ({"_args_": 1}, "group._args_=1: must be a list"),
        ({"_args_": [1]}, "group._args_=[1]: Whole: too many positional arguments"),
        ({"_target_": 5}, "group._target_=5: must be the name of a class or function"),
        ({"_target_": "math.pi"}, "group._target_=math.pi: must be a class or function, but is"),
        ({"_target_": "nowhere.Part"}, "group._target_=nowhere.Part: cannot be found"),
        ({"_target_": f"{HERE}s"}, f"group._target_={HERE}s: cannot be found"),
    ],
)
def test_the_message_names_the_setting(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check(**settings)
    assert message in str(raised.value)


def test_a_setting_that_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r"^group\.must: must be set$"):
        check_settings(OmegaConf.create({"group": {"_target_": HERE, "count": 1}}).group)


def test_a_shared_group_keeps_its_own_name() -> None:
    config = OmegaConf.create(
        {"noise": {**PART, "count": "x"}, "defense": {**SOUND, "part": "${noise}"}}
    )
    with pytest.raises(ConfigurationError, match=r"^noise\.count=x"):
        check_settings(config.defense)
