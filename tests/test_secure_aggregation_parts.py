"""What secure aggregation is built from: keys, sealed messages, shares, masks, codes, layouts."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medpfl.defenses.secure_aggregation.agreement import KeyPair
from medpfl.defenses.secure_aggregation.derivation import derive
from medpfl.defenses.secure_aggregation.fixed_point import FixedPoint, signed
from medpfl.defenses.secure_aggregation.layout import Layout
from medpfl.defenses.secure_aggregation.masks import add_mask
from medpfl.defenses.secure_aggregation.messages import Shares
from medpfl.defenses.secure_aggregation.sealing import TAG_BYTES, seal, unseal
from medpfl.defenses.secure_aggregation.sharing import PRIME, reconstruct, split
from medpfl.errors import ConfigurationError

TO_YOU, FROM_YOU = b"from 1, to 2", b"from 2, to 1"
secrets = st.binary(min_size=32, max_size=32)


def seed(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


# RFC 7748, section 5.2.
def test_agreement_gives_the_secret_of_rfc_7748():
    private = "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"
    public = "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"
    secret = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert KeyPair(bytes.fromhex(private)).agree(bytes.fromhex(public)).hex() == secret


@given(one=secrets, other=secrets)
def test_both_ends_agree_on_one_secret(one, other):
    here, there = KeyPair(one), KeyPair(other)
    assert here.agree(there.public) == there.agree(here.public)


# The points of order 1, 2 and 4, and others that are these modulo the prime.
@pytest.mark.parametrize("point", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18])
def test_a_key_that_gives_everybody_the_same_secret_is_refused(point):
    with pytest.raises(ValueError, match="nothing secret can be agreed on"):
        KeyPair(seed(1)).agree(point.to_bytes(32, "little"))


# RFC 5869, appendix A.3: the first 32 bytes.
def test_derivation_gives_the_key_of_rfc_5869():
    made = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert derive(b"\x0b" * 22, b"").hex() == made


def test_keys_for_two_purposes_are_two_keys():
    assert derive(seed(1), b"one") != derive(seed(1), b"other") != derive(seed(2), b"other")


@given(secret=secrets, message=st.binary(max_size=200))
def test_what_is_sealed_comes_back_and_is_hidden(secret, message):
    sealed = seal(secret, TO_YOU, message)
    assert len(sealed) == len(message) + TAG_BYTES
    assert unseal(secret, TO_YOU, sealed) == message
    if len(message) > 8:  # shorter ones may hide as themselves
        assert message not in sealed


def test_a_sealed_message_opens_for_its_recipient_alone_and_unchanged():
    sealed = seal(seed(1), TO_YOU, b"a share")
    for secret, nonce in ((seed(2), TO_YOU), (seed(1), FROM_YOU)):
        with pytest.raises(ValueError, match="changed on its way"):
            unseal(secret, nonce, sealed)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(ValueError, match="changed on its way"):
            unseal(seed(1), TO_YOU, bytes(changed))


def test_shares_name_their_sender_and_holder():
    shares = Shares(self_seed=PRIME - 1, masking_key=3)
    assert Shares.from_bytes(shares.to_bytes(4, 5), 4, 5) == shares
    with pytest.raises(ValueError, match="name other clients"):
        Shares.from_bytes(shares.to_bytes(4, 5), 5, 4)


@given(secret=secrets, holders=st.integers(2, 8), data=st.data())
def test_any_quorum_of_shares_gives_the_secret(secret, holders, data):
    quorum = data.draw(st.integers(1, holders))
    shares = split(secret, range(1, holders + 1), quorum, seed(2))
    some = data.draw(st.permutations(sorted(shares)))[: data.draw(st.integers(quorum, holders))]
    assert reconstruct({point: shares[point] for point in some}) == secret


@given(candidate=secrets, points=st.permutations(range(1, 6)))
def test_shares_fewer_than_the_quorum_fit_every_secret(candidate, points):
    shares = split(seed(3), range(1, 6), 3, seed(4))
    few, missing = {point: shares[point] for point in points[:2]}, points[2]

    def with_share(share: int) -> int:
        return int.from_bytes(reconstruct({**few, missing: share}), "big")

    zero, slope = with_share(0), with_share(1) - with_share(0)
    fitting = (int.from_bytes(candidate, "big") - zero) * pow(slope, -1, PRIME) % PRIME
    assert reconstruct({**few, missing: fitting}) == candidate


def test_the_prime_is_one_and_the_smallest_above_32_bytes():
    sympy = pytest.importorskip("sympy")
    assert sympy.nextprime(2**256) == PRIME


@pytest.mark.parametrize(("points", "quorum"), [([1, 2], 3), ([1, 2], 0), ([1, 1], 1), ([0, 1], 2)])
def test_no_sharing_where_shares_would_be_too_few_or_the_secret_itself(points, quorum):
    with pytest.raises(ValueError, match="no such sharing"):
        split(seed(1), points, quorum, seed(2))


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("length", [1, 2, 3, 2**15 - 1, 2**15, 2**15 + 1, 70_001])
def test_a_mask_is_its_seed_and_goes_away_again(dtype, length):
    entries = np.arange(length).astype(dtype)
    masked = entries.copy()
    add_mask(masked, seed(1))
    again, other = entries.copy(), entries.copy()
    add_mask(again, seed(1))
    add_mask(other, seed(2))
    assert np.array_equal(masked, again)
    assert not np.array_equal(masked, other)
    add_mask(masked, seed(1), negative=True)
    assert np.array_equal(masked, entries)


@pytest.mark.parametrize("place", range(32))
def test_every_byte_of_a_seed_counts(place):
    changed = bytearray(seed(1))
    changed[place] ^= 0x80
    one, other = np.zeros(64, np.uint64), np.zeros(64, np.uint64)
    add_mask(one, seed(1))
    add_mask(other, bytes(changed))
    assert not np.isin(one, other).any()


codes = st.builds(
    FixedPoint,
    clip_range=st.floats(1e-6, 1e6),
    value_bits=st.integers(2, 44),
    bits=st.just(64),
)
narrow_codes = st.builds(
    FixedPoint, clip_range=st.floats(1e-6, 1e6), value_bits=st.integers(2, 31), bits=st.just(32)
)


@given(code=codes | narrow_codes, number=st.integers(0, 1000), data=st.data())
def test_encoding_is_within_half_a_step_times_the_weight(code, number, data):
    weight = data.draw(st.integers(1, min(code.capacity, 10_000)))
    stream = torch.Generator().manual_seed(number)
    values = code.clip_range * (2 * torch.rand(50, generator=stream, dtype=torch.float64) - 1)
    encoded, clipped = code.encode(values, weight)
    assert clipped == 0
    assert encoded.dtype == (np.uint32 if code.bits == 32 else np.uint64)
    steps = signed(encoded)
    assert not (steps % weight).any()
    error = (code.decode(encoded) / weight - values).abs().max()
    assert error <= code.step * (0.5 + 2**-9)


@given(code=codes | narrow_codes)
def test_what_lies_beyond_the_range_is_its_end_and_counted(code):
    ends = torch.tensor([1.0, -1.0, 1.5, -100.0, torch.inf, 0.0], dtype=torch.float64)
    encoded, clipped = code.encode(code.clip_range * ends, 1)
    assert np.array_equal(signed(encoded), np.array([1, -1, 1, -1, 1, 0]) * code.levels)
    assert clipped == 3


@given(code=codes | narrow_codes)
def test_the_largest_sum_that_is_let_through_does_not_wrap_round(code):
    # The extreme case: every entry of every client at the end of the range.
    full = code.capacity
    code.check([full - 1, 1] if full > 1 else [1])
    extreme = torch.full((1,), -code.clip_range, dtype=torch.float64)
    encoded, _ = code.encode(extreme, full)
    assert int(signed(encoded)[0]) == -full * code.levels
    assert (full + 1) * code.levels > 2 ** (code.bits - 1) - 1
    with pytest.raises(ConfigurationError, match="wrap round"):
        code.check([full, 1])


@given(value_bits=st.integers(2, 44), bits=st.sampled_from([32, 64]), total=st.integers(2, 2**40))
def test_the_way_out_of_a_range_too_small_is_one_and_the_widest(value_bits, bits, total):
    code = FixedPoint(clip_range=1.0, value_bits=value_bits, bits=bits)
    try:
        code.check([total - 1, 1])
    except ConfigurationError as error:
        if "no value_bits fits" in str(error):
            with pytest.raises(ConfigurationError):
                FixedPoint(clip_range=1.0, value_bits=2, bits=bits).check([total])
            return
        fitting = int(str(error).split("value_bits=")[2].split()[0])
        assert 2 <= fitting < value_bits
        FixedPoint(clip_range=1.0, value_bits=fitting, bits=bits).check([total])
        with pytest.raises(ConfigurationError):
            FixedPoint(clip_range=1.0, value_bits=fitting + 1, bits=bits).check([total])
        if "bits=64 too" in str(error):
            FixedPoint(clip_range=1.0, value_bits=value_bits, bits=64).check([total])


def test_a_layout_puts_tensors_back_where_they_were():
    update = {"b": torch.randn(2, 3), "a": torch.randn(()), "c": torch.empty(0, 4)}
    layout = Layout.of(update)
    flat = layout.flatten({name: update[name] for name in ("c", "b", "a")})
    assert (layout.length, flat.dtype) == (7, torch.float64)
    back = layout.unflatten(flat)
    assert all(torch.equal(back[name], update[name].double()) for name in update)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": torch.zeros(2)}, "other tensors"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, "other tensors"),
        ({"a": torch.zeros(3), "b": torch.zeros(3)}, r"a has the shape \(3,\)"),
    ],
)
def test_a_layout_refuses_another_clients_tensors(other, message):
    layout = Layout.of({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match=message):
        layout.flatten(other)


@pytest.mark.parametrize("nothing", [{}, {"count": torch.tensor(3)}])
def test_there_is_no_layout_of_what_cannot_be_masked(nothing):
    with pytest.raises(ValueError, match=r"no sum|no real numbers"):
        Layout.of(nothing)
