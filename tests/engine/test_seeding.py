import torch

from gcond.engine.batches import generator, seeded, subseed


def test_a_subseed_is_the_same_on_every_machine() -> None:
    # By hand: `printf 42/weights | sha256sum` starts with 21d4511b1dd02ed6, of 42/order/3 with 015437eaf294d2f6;
    # halved, to fit a signed 64-bit number.
    assert subseed(42, "weights") == 0x21D4511B1DD02ED6 // 2
    assert subseed(42, "order", 3) == 0x015437EAF294D2F6 // 2


def test_components_and_seeds_are_unrelated() -> None:
    names = [(name, number) for name in ("mask", "order", "resolver") for number in range(20)]
    draws = {tuple(torch.rand(4, generator=generator(seed, *name)).tolist()) for seed in range(20) for name in names}
    assert len(draws) == 20 * len(names)  # seed 1, mask 12 is not seed 11, mask 2, nor seed 2, mask 11


def test_the_global_generator_is_seeded_inside_and_restored_after() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(42, "weights"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(inside, torch.rand(3, generator=generator(42, "weights")))
