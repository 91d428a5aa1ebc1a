"""Quantisers: codes and back, gradients, dead codes, several processes."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from speechkit.codecs.codebook import Codebook
from speechkit.codecs.quantizers import FiniteScalarQuantizer, ResidualQuantizer, Usage, VectorQuantizer
from speechkit.errors import InputError


def vector(size: int = 8, dim: int = 4, **options: object) -> VectorQuantizer:
    return VectorQuantizer(Codebook(size, dim, **options))  # type: ignore[arg-type]


def test_rows_of_the_codebook_are_their_own_codes() -> None:
    quantizer = vector().eval()
    codes = torch.arange(8)[None]
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_the_nearest_row_is_found() -> None:
    torch.manual_seed(0)
    quantizer, x = vector(50, 6).eval(), torch.randn(2, 30, 6)
    expected = torch.cdist(x, quantizer.codebook.embed[None]).argmin(-1)
    assert torch.equal(quantizer.encode(x), expected)


def test_the_gradient_passes_straight_through() -> None:
    quantizer = vector().eval()
    x = torch.randn(1, 5, 4, requires_grad=True)
    weight = torch.randn(1, 5, 4)
    (quantizer(x).values * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)


def test_what_is_masked_teaches_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    codebooks = []
    for fill in (0.0, 100.0):
        torch.manual_seed(1)
        quantizer = vector(threshold=0.0).train()
        found = quantizer(torch.where(mask[..., None], x, torch.tensor(fill)), mask)
        codebooks.append((quantizer.codebook.embed.clone(), found.loss))
    torch.testing.assert_close(codebooks[0], codebooks[1])


@pytest.mark.parametrize(("dead_code", "revived"), [("fixed", True), ("reference", False)])
def test_a_code_that_nobody_uses_comes_back(dead_code: str, revived: bool) -> None:
    """In the published training it does not: its new place is overwritten in the same step."""
    torch.manual_seed(0)
    quantizer = vector(4, 2, kmeans=0, dead_code=dead_code).train()
    book = quantizer.codebook
    book.embed.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [50.0, 50.0]]))
    book.cluster_size.copy_(torch.tensor([9.0, 9.0, 9.0, 0.5]))
    book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
    for _ in range(3):
        quantizer(torch.randn(1, 40, 2))
    assert bool(book.embed[3].abs().max() < 10) == revived


def test_k_means_spread_over_the_first_batch() -> None:
    torch.manual_seed(0)
    centres = 10 * torch.eye(4)
    x = centres.repeat(20, 1) + 0.1 * torch.randn(80, 4)
    quantizer = vector(4, 4, kmeans=20).train()
    quantizer(x[None])
    apart = torch.cdist(quantizer.codebook.embed, centres).min(-1).values
    assert quantizer.codebook.inited.item() == 1
    assert apart.median() < 0.5
    before = quantizer.codebook.embed.clone()
    quantizer(x[None] + 5)
    moved = (quantizer.codebook.embed - before).abs().amax(-1)
    assert (moved < 1).sum() >= 3, "only the first batch is taken over, but for codes that nobody uses"


def test_a_codebook_begins_again_where_its_state_is_put_back() -> None:
    quantizer = vector(4, 4, kmeans=5).train()
    before = {name: x.clone() for name, x in quantizer.state_dict().items()}
    quantizer(torch.randn(1, 40, 4))
    assert quantizer.begun
    quantizer.load_state_dict(before)
    assert not quantizer.begun
    quantizer(torch.randn(1, 40, 4))
    assert quantizer.begun


def test_residual_layers_come_nearer_and_nearer() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(vector(32, 4).codebook, codebooks=3).train()
    x = torch.randn(4, 100, 4)
    for _ in range(30):
        quantizer(x)
    quantizer.eval()
    codes = quantizer.encode(x)
    errors = [float((quantizer.decode(codes[..., :n]) - x).square().mean()) for n in (1, 2, 3)]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    torch.testing.assert_close(quantizer(x).values, quantizer.decode(codes))
    assert torch.equal(quantizer(x).codes, codes)


def test_some_rows_of_a_batch_are_decoded_from_their_first_codes_alone() -> None:
    quantizer = ResidualQuantizer(vector(32, 4).codebook, codebooks=3, dropout=0.5).train()
    quantizer(torch.randn(4, 100, 4))
    made = quantizer(x := torch.randn(200, 4, 4))
    with torch.no_grad():
        apart = torch.stack(
            [(quantizer.decode(made.codes[..., :n]) - made.values).abs().amax((1, 2)) for n in (1, 2, 3)]
        )
    assert made.codes.shape == (200, 4, 3)
    counts = torch.bincount(apart.argmin(0), minlength=3)
    assert counts.tolist() == pytest.approx([33, 33, 133], abs=25), "half of the rows have 1, 2 or 3, the others all"
    quantizer.eval()
    torch.testing.assert_close(quantizer(x).values, quantizer.decode(quantizer.encode(x)))


def test_a_residual_quantiser_has_several_codebooks() -> None:
    with pytest.raises(ValueError, match="from 2 to 64 codebooks, got 1"):
        ResidualQuantizer(vector(32, 4).codebook, codebooks=1)


@pytest.mark.parametrize("levels", [[3] * 8, [5, 4, 3], [8, 8, 2]])
def test_finite_scalars_have_every_code_and_each_its_own_numbers(levels: list[int]) -> None:
    quantizer = FiniteScalarQuantizer(6, levels)
    codes = torch.arange(quantizer.size)[None]
    digits = quantizer.digits(codes)
    assert quantizer.size == torch.tensor(levels).prod()
    assert torch.equal(quantizer.code(digits), codes)
    assert len(digits[0].unique(dim=0)) == quantizer.size
    with torch.no_grad():
        reached = quantizer.bounded(100 * torch.randn(1, 20_000, 6)).round()
    for j, level in enumerate(levels):
        low, high = -(level // 2), (level - 1) // 2
        assert reached[..., j].min() == low
        assert reached[..., j].max() == high


def test_finite_scalars_without_a_way_back_say_so() -> None:
    quantizer = FiniteScalarQuantizer(6, [3, 3], restore=False)
    codes = quantizer.encode(torch.randn(1, 4, 6))
    assert 0 <= int(codes.min()) <= int(codes.max()) < 9
    with pytest.raises(InputError, match="without a way back"):
        quantizer.decode(codes)


def test_usage_is_counted() -> None:
    usage = Usage(4)
    usage.update(torch.tensor([[0, 1], [0, 1]]))
    share, perplexity = usage.compute()
    assert share == 0.5
    assert perplexity == pytest.approx(2.0)
    usage.reset()
    usage.update(torch.arange(4))
    assert usage.compute() == (1.0, pytest.approx(4.0))


def test_usage_is_the_mean_over_codebooks() -> None:
    usage = Usage(4, codebooks=2)
    usage.update(torch.tensor([[[0, 3], [1, 3], [2, 3], [3, 3]]]))
    assert usage.compute() == (pytest.approx((1 + 0.25) / 2), pytest.approx((4 + 1) / 2))


def _learn(rank: int, port: int, x: torch.Tensor, results: "mp.Queue[tuple[int, np.ndarray]]") -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(rank)  # what is drawn at random must be the same all the same
    quantizer = vector(6, 3, kmeans=3).train()
    for step in range(4):
        quantizer(x[step, rank : rank + 1, : 20 + 10 * rank])
    results.put((rank, quantizer.codebook.embed.numpy()))  # a tensor is fetched from here, which may have ended
    dist.destroy_process_group()


def test_processes_share_one_codebook() -> None:
    """Though they draw different numbers and have batches of different sizes."""
    torch.manual_seed(0)
    context = mp.get_context("spawn")
    results = context.Queue()
    port = 29_500 + torch.randint(1000, ()).item()
    x = torch.randn(4, 2, 30, 3)
    workers = [context.Process(target=_learn, args=(rank, port, x, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    codebooks = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(20)
    assert np.array_equal(codebooks[0], codebooks[1])


def test_training_on_keeps_the_rows_of_a_published_codebook_that_are_used_seldom() -> None:
    """Their use has a long tail; with the published threshold nearly all would be drawn anew in the first step."""
    torch.manual_seed(0)
    book = Codebook(512, 8).train()
    uses = 1 / torch.arange(1, 513)
    book.inited.fill_(1)
    book.cluster_size.copy_(2.2 * 512 * uses / uses.sum())
    book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
    before = book.embed.clone()
    assert (book.cluster_size < 2).float().mean() > 0.8
    x = before[torch.multinomial(uses, 1000, replacement=True)] + 0.01 * torch.randn(1000, 8)
    book.learn(x, book.nearest(x))
    assert ((book.embed - before).norm(dim=1) < 0.1 * before.norm(dim=1)).float().mean() > 0.95


def test_a_codebook_without_k_means_has_begun_after_its_first_batch() -> None:
    book = Codebook(4, 2, kmeans=0).train()
    assert not book.begun
    before = book.embed.clone()
    book.begin(torch.ones(5, 2))
    assert book.begun
    assert torch.equal(book.embed, before)
    torch.manual_seed(0)
    x = torch.randn(20, 2)
    for _ in range(3):
        book.learn(x, book.nearest(x))
    assert book.embed.norm(dim=1).max() < x.norm(dim=1).max()
