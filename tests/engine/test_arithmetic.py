"""A machine's fingerprint: the same at each call, whatever was drawn before, and another where it rounds otherwise."""

from __future__ import annotations

import torch

from gcond.engine.device import fingerprint

CPU = torch.device("cpu")


def test_it_is_the_same_each_time_and_draws_nothing():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = fingerprint(CPU)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert fingerprint(CPU) == found
    assert len(found) == 8


def test_it_is_another_where_convolutions_round_otherwise():
    found = fingerprint(CPU)
    with torch.backends.mkldnn.flags(enabled=False):
        assert fingerprint(CPU) != found
