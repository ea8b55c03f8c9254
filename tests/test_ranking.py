"""Rankings, their scores, whitening, mining and the contrastive loss, by hand and by the reference numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking import Relevance, average_precision, nearest, score_rankings, without_junk
from reference_weights import rand
from tuple_mining import contrastive_loss, mine_negatives
from whitening import learn_whitening

from minmax.runtime.errors import RunError

EXPECTED = json.loads((Path(__file__).parent / "vpr_numbers.json").read_text())


def test_parity_of_average_precision():
    probe = EXPECTED["ap_probe"]
    ranking = list(range(10))
    assert average_precision(ranking, (0, 2, 5)) == pytest.approx(probe["ranks [0,2,5] nres 3"], abs=1e-12)
    four = (1, 4, 11, 12)  # two of which are never found
    assert average_precision(ranking, four) == pytest.approx(probe["ranks [1,4] nres 4"], abs=1e-12)


def test_parity_of_mean_average_precision():
    expected = EXPECTED["map"]
    relevances = [Relevance(tuple(g["ok"]), tuple(g.get("junk", ()))) for g in expected["gnd"]]
    score = score_rankings(torch.tensor(expected["ranks_T"]), relevances, [str(i) for i in range(5)])
    assert score.mean_average_precision == pytest.approx(expected["map"], abs=1e-12)
    for found, wanted in zip(score.average_precisions, expected["aps"], strict=True):
        assert (found != found) if wanted is None else found == pytest.approx(wanted, abs=1e-12)
    assert score.answerable == 4


def test_junk_is_taken_out_before_a_ranking_is_scored():
    wanted = Relevance(ok=(3,), junk=(0, 1))
    assert without_junk([2, 0, 1, 3], wanted) == [2, 3]
    right, wrong = (
        score_rankings(torch.tensor([ranking]), [wanted], ["a"]) for ranking in ([0, 1, 3, 2], [2, 0, 1, 3])
    )
    assert (right.mean_average_precision, right.recalls[1]) == (1.0, 1.0)
    assert (wrong.mean_average_precision, wrong.recalls[1], wrong.recalls[5]) == (0.25, 0.0, 1.0)


def test_every_place_counts_alike_in_the_average_over_places():
    rankings = torch.tensor([[0, 1], [0, 1], [0, 1]])
    score = score_rankings(rankings, [Relevance((0,)), Relevance((0,)), Relevance((1,))], ["a", "a", "b"])
    assert score.recalls[1] == pytest.approx(2 / 3)
    assert score.by_place_mean[1] == pytest.approx(0.5)
    assert score.by_place["a"] == (1.0, 1.0, 2)


def test_nearest_is_a_full_sort_by_similarity():
    queries, database = torch.randn(700, 8), torch.randn(50, 8)
    assert torch.equal(nearest(queries, database), (queries @ database.T).argsort(dim=1, descending=True))


@pytest.mark.parametrize("case", EXPECTED["contrastive"])
def test_parity_of_the_contrastive_loss(case):
    expected = EXPECTED["contrastive"][case]
    seed = int(expected["x"].split("seed ")[1].split(")")[0])
    labels = expected["labels"]
    x = rand((32, len(labels)), seed, scale=2.0, offset=-1.0).float()
    x = x / x.norm(dim=0)
    x = (x * 0.3 if "times 0.3" in expected["x"] else x).double().requires_grad_()
    size = labels.count(-1)
    tuples = x.T.unflatten(0, (size, -1))
    positives = labels[: len(labels) // size].count(1)
    loss = contrastive_loss(tuples[:, 0], tuples[:, 1 : 1 + positives], tuples[:, 1 + positives :], expected["margin"])
    loss.backward()
    # The reference normalised its float32 columns in float64.
    assert float(loss.detach()) == pytest.approx(expected["loss"], rel=1e-6)
    torch.testing.assert_close(x.grad.flatten()[:16].tolist(), expected["grad"]["first16"], rtol=1e-5, atol=1e-6)
    assert float(x.grad.abs().sum()) == pytest.approx(expected["grad"]["abs_sum"], rel=1e-6)


def whitening_pairs():
    x = torch.rand(16, 200, generator=torch.Generator().manual_seed(408)).numpy() * 2 - 1
    x[:, 100:] = np.float32(0.6) * x[:, :100] + np.float32(0.4) * x[:, 100:]
    return torch.from_numpy(x.T.astype(np.float64)), torch.arange(100), torch.arange(100, 200)


def test_parity_of_whitening():
    descriptors, queries, positives = whitening_pairs()
    whitening, expected = learn_whitening(descriptors, queries, positives), EXPECTED["whitening"]
    torch.testing.assert_close(whitening.mean.tolist(), expected["mean"], rtol=1e-6, atol=1e-8)
    rows = whitening.projection
    signs = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    torch.testing.assert_close((rows * signs).flatten().tolist(), expected["projection"], rtol=1e-5, atol=1e-6)
    whitened = whitening(descriptors)[:6]
    torch.testing.assert_close((whitened @ whitened.T).tolist(), expected["gram"], rtol=1e-5, atol=1e-6)


def test_whitened_pairs_differ_alike_in_all_directions():
    descriptors, queries, positives = whitening_pairs()
    whitening = learn_whitening(descriptors, queries, positives)
    difference = (descriptors[queries] - descriptors[positives]) @ whitening.projection.T
    torch.testing.assert_close(difference.T @ difference / 100, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-8)


def test_descriptors_that_depend_on_each_other_can_be_whitened():
    descriptors, queries, positives = whitening_pairs()
    descriptors[:, 15] = descriptors[:, 0]
    assert learn_whitening(descriptors, queries, positives)(descriptors).isfinite().all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), places=st.integers(4, 12), count=st.integers(1, 3))
def test_mining_finds_what_a_full_sort_finds(seed, places, count):
    generator = torch.Generator().manual_seed(seed)
    queries, pool = torch.randn(9, 6, generator=generator), torch.randn(60, 6, generator=generator)
    pool_clusters = torch.arange(60) % places
    query_clusters = torch.randint(places, (9,), generator=generator)
    found = mine_negatives(queries, pool, query_clusters, pool_clusters, count)
    for row, ranking in enumerate((queries @ pool.T).argsort(dim=1, descending=True).tolist()):
        seen, wanted = {int(query_clusters[row])}, []
        for position in ranking:
            if int(pool_clusters[position]) not in seen and len(wanted) < count:
                seen.add(int(pool_clusters[position]))
                wanted.append(position)
        assert found[row].tolist() == wanted


def test_too_few_places_in_the_pool_are_refused():
    pool = (torch.ones(4, 2), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(RunError, match="shows 1 places beside a query's; 2 negatives.*--tuples.pool"):
        mine_negatives(torch.ones(1, 2), pool[0], torch.tensor([0]), pool[1], 2)
    assert mine_negatives(torch.ones(1, 2), pool[0], torch.tensor([7]), pool[1], 2).shape == (1, 2)
