import torch

from gcond.model.patches import blank, hidden_mask, paste, patchify, select, unpatchify


def test_patches_are_row_major_and_unpatchify_inverts() -> None:
    images = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6).to(memory_format=torch.channels_last)
    patches = patchify(images, 2)
    assert patches.shape == (2, 9, 3, 2, 2)
    for row in range(3):
        for column in range(3):
            expected = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(patches[:, 3 * row + column], expected)
    torch.testing.assert_close(unpatchify(patches), images)


def test_select_takes_each_row_s_own_items_in_the_order_asked_for() -> None:
    items = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    picked = select(items, torch.tensor([[2, 0], [1, 1]]))
    assert picked.squeeze(-1).tolist() == [[3.0, 1.0], [5.0, 5.0]]


def test_paste_puts_each_patch_in_its_place_and_leaves_the_rest() -> None:
    images = torch.rand(2, 3, 6, 6)
    before = images.clone()
    hidden = torch.tensor([[4, 0], [2, 7]])
    patches = torch.rand(2, 2, 3, 2, 2) + 1
    expected = images.clone()
    expected[0, :, 2:4, 2:4], expected[0, :, 0:2, 0:2] = patches[0]  # by hand: patch 4 of 3 x 3 is the middle
    expected[1, :, 0:2, 4:6], expected[1, :, 4:6, 2:4] = patches[1]
    torch.testing.assert_close(paste(images, hidden, patches), expected, rtol=0, atol=0)
    torch.testing.assert_close(images, before, rtol=0, atol=0)


def test_blank_zeroes_the_hidden_patches_and_nothing_else() -> None:
    images = torch.rand(2, 3, 6, 6) + 1
    hidden = torch.tensor([[0, 4], [8, 2]])
    mask = hidden_mask(hidden, 9)
    assert mask.nonzero().tolist() == [[0, 0], [0, 4], [1, 2], [1, 8]]
    images[0, :, :2, :2] = torch.nan  # of a hidden patch
    patches, original = patchify(blank(images, mask, 2), 2), patchify(images, 2)
    assert (patches[mask] == 0).all()
    torch.testing.assert_close(patches[~mask], original[~mask])
