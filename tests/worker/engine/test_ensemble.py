"""How queries are shared out: in which batches, to which rank, and what happens without memory."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.engine.thread_group import thread_groups
from worker.engine.attention import Context, View
from worker.engine.canvas import Plane, Rectangle
from worker.engine.ensemble import Batch, Ensemble, Query
from worker.engine.ranks import Group
from worker.engine.warned import Warned

CANVAS = Plane(6, 40, (False, True))
LATENT = torch.randn(2, *CANVAS.size, generator=torch.Generator().manual_seed(1))
TIMESTEP = torch.tensor(700.0)

Predictions = list[tuple[Rectangle, Tensor]]


@dataclass
class Recorder:
    """Predicts by crop, place, branch and timestep, query by query, and keeps the batches.

    Args:
        largest: batch that there is memory for.
    """

    branches: int = 2
    largest: int = 1000
    batches: list[Batch] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        return [len(batch.queries) for batch in self.batches]

    def predict(self, batch: Batch) -> Tensor:
        self.batches.append(batch)
        if len(batch.queries) > self.largest:
            raise torch.OutOfMemoryError("no memory")
        return torch.stack(
            [
                answer(query, crop, timestep)
                for query, crop, timestep in zip(batch.queries, batch.crops, batch.timesteps, strict=True)
            ]
        )

    def guide(self, predictions: Tensor) -> Tensor:
        """Ho and Salimans 2022, eq. 6, of a scale of 3, where there are two branches."""
        return predictions[0] + 3 * (predictions[-1] - predictions[0])


def answer(query: Query, crop: Tensor, timestep: Tensor) -> Tensor:
    return crop * (1 + query.branch) + query.tile.left + timestep / 1000


def list_tiles(count: int) -> list[Rectangle]:
    """Different ones, the last of which wrap."""
    return [Rectangle(number % 3, number, 4, 5) for number in range(count)]


def expect(tiles: list[Rectangle], branches: int) -> Predictions:
    """Each tile by itself."""
    replica, alone = Recorder(branches), Predictions()
    for tile in tiles:
        crop = LATENT.roll((-tile.top, -tile.left), (1, 2))[:, : tile.height, : tile.width]
        each = [answer(Query(tile, branch), crop, TIMESTEP) for branch in range(branches)]
        alone.append((tile, replica.guide(torch.stack(each))))
    return alone


def are_equal(found: Predictions, expected: Predictions) -> bool:
    return [tile for tile, _ in found] == [tile for tile, _ in expected] and all(
        torch.equal(one, other) for (_, one), (_, other) in zip(found, expected, strict=True)
    )


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 2]), st.booleans())
def test_every_tile_gets_its_own_prediction_in_the_order_given(
    count: int, modules: int, branches: int, even: bool
) -> None:
    tiles, replica = list_tiles(count), Recorder(branches)
    ensemble = Ensemble(replica, CANVAS, modules, even=even)
    assert are_equal(list(ensemble.predict(LATENT, TIMESTEP, tiles)), expect(tiles, branches))
    assert ensemble.take_warnings() == []


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 2]), st.booleans())
def test_batches_have_one_size_or_two_and_hold_every_query_once(
    count: int, modules: int, branches: int, even: bool
) -> None:
    """The last is filled up with copies of its last query; even ones need none, and differ by no more than one."""
    tiles, replica = list_tiles(count), Recorder(branches)
    list(Ensemble(replica, CANVAS, modules, even=even).predict(LATENT, TIMESTEP, tiles))
    queries = [Query(tile, branch) for tile in tiles for branch in range(branches)]
    asked = [query for batch in replica.batches for query in batch.queries]
    assert max(replica.sizes) - min(replica.sizes) <= int(even)
    assert max(replica.sizes) <= modules * branches
    assert asked[: len(queries)] == queries
    assert set(asked[len(queries) :]) <= {queries[-1]}
    assert len(asked) - len(queries) < (1 if even else replica.sizes[0])


@given(st.integers(1, 40), st.integers(1, 9), st.booleans(), st.sampled_from([1, 2, 3]))
@settings(max_examples=30)
def test_without_guidance_each_tile_is_predicted_by_its_prompt_alone(
    count: int, modules: int, even: bool, ranks: int
) -> None:
    tiles, replicas = list_tiles(count), [Recorder() for _ in range(ranks)]
    alone = [(tile, answer(Query(tile, 1), CANVAS.gather(LATENT, tile), TIMESTEP)) for tile in tiles]
    found = predict_together(replicas, modules, tiles, even=even, guided=False)
    assert all(are_equal(each, alone) for each in found)
    assert {query.branch for replica in replicas for batch in replica.batches for query in batch.queries} == {
        1
    }
    if not even:  # as many tiles as ever in a batch, whoever predicts it
        assert {size for replica in replicas for size in replica.sizes} == {modules}


def test_a_batch_has_a_clock_for_each_query_and_no_context_unless_there_are_views() -> None:
    replica = Recorder()
    list(Ensemble(replica, CANVAS, 3).predict(LATENT, TIMESTEP, list_tiles(4)))
    for batch in replica.batches:
        assert batch.timesteps.tolist() == [700.0] * 6
        assert batch.crops.shape == (6, 2, 4, 5)
        assert batch.context is None


def test_a_batch_splits_into_its_queries() -> None:
    queries = tuple(Query(tile, branch) for tile in list_tiles(2) for branch in range(2))
    seen = [View(torch.randn(2, 2, 2), torch.tensor(1.0), query.tile) for query in queries]
    context = Context(CANVAS, seen[0], 0.5, tuple(seen))
    whole = Batch(torch.randn(4, 2, 4, 5), torch.arange(4.0), queries, context)
    parts = list(whole.split())
    assert [part.queries for part in parts] == [(query,) for query in queries]
    assert torch.equal(torch.cat([part.crops for part in parts]), whole.crops)
    assert torch.equal(torch.cat([part.timesteps for part in parts]), whole.timesteps)
    for part, view in zip(parts, seen, strict=True):
        assert part.context is not None
        assert part.context.conductor is context.conductor
        assert part.context.neighbourhoods == (view,)


def test_nothing_is_predicted_before_it_is_needed() -> None:
    """Whoever stops after a tile has not paid for the next batch."""
    replica = Recorder()
    predictions = Ensemble(replica, CANVAS, 2).predict(LATENT, TIMESTEP, list_tiles(6))
    for taken, batches in enumerate([1, 1, 2, 2, 3, 3], start=1):
        next(predictions)
        assert len(replica.batches) == batches, taken


@pytest.mark.parametrize(("modules", "largest", "sizes"), [(4, 5, [8, 4, 4]), (4, 3, [8, 4, 2, 2, 2, 2])])
def test_batches_are_halved_until_they_fit_and_stay_so(modules: int, largest: int, sizes: list[int]) -> None:
    tiles, replica = list_tiles(4), Recorder(largest=largest)
    ensemble = Ensemble(replica, CANVAS, modules)
    assert are_equal(list(ensemble.predict(LATENT, TIMESTEP, tiles)), expect(tiles, 2))
    assert replica.sizes == sizes
    tried = sorted({size for size in sizes if size > largest}, reverse=True)
    assert ensemble.take_warnings() == [
        Warned("batch_halved", f"no memory for batches of {size} predictions; going on with {size // 2}")
        for size in tried
    ]
    assert ensemble.take_warnings() == []
    list(ensemble.predict(LATENT, TIMESTEP, tiles))
    assert set(replica.sizes[len(sizes) :]) == {sizes[-1]}
    assert ensemble.at_most == sizes[-1]


def test_a_later_stage_begins_with_the_size_that_fitted() -> None:
    tiles, replica = list_tiles(5), Recorder(largest=3)
    ensemble = Ensemble(replica, CANVAS, 9, at_most=3)
    assert are_equal(list(ensemble.predict(LATENT, TIMESTEP, tiles)), expect(tiles, 2))
    assert set(replica.sizes) == {3}
    assert ensemble.take_warnings() == []


def test_no_memory_in_the_middle_of_a_step_costs_no_prediction() -> None:
    """As when another process takes some: what was predicted before stays, what was not is asked again."""

    class Shrinking(Recorder):
        def predict(self, batch: Batch) -> Tensor:
            self.largest = 8 if len(self.batches) < 2 else 3
            return super().predict(batch)

    tiles, replica = list_tiles(12), Shrinking()
    ensemble = Ensemble(replica, CANVAS, 4)
    assert are_equal(list(ensemble.predict(LATENT, TIMESTEP, tiles)), expect(tiles, 2))
    assert replica.sizes == [8, 8, 8, 4, 2, 2, 2, 2]


def test_a_single_prediction_without_memory_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(Ensemble(Recorder(largest=0), CANVAS, 4).predict(LATENT, TIMESTEP, list_tiles(4)))


def test_any_other_error_is_not_mistaken_for_a_lack_of_memory() -> None:
    class Failing(Recorder):
        def predict(self, batch: Batch) -> Tensor:
            self.batches.append(batch)
            raise RuntimeError("shapes do not fit")

    replica = Failing()
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(Ensemble(replica, CANVAS, 4).predict(LATENT, TIMESTEP, list_tiles(4)))
    assert replica.sizes == [8]


def predict_together(
    replicas: list[Recorder],
    modules: int,
    tiles: list[Rectangle],
    *,
    even: bool = False,
    guided: bool = True,
) -> list[Predictions]:
    """By each rank."""

    def predict(replica: Recorder, group: Group) -> Predictions:
        ensemble = Ensemble(replica, CANVAS, modules, group, even=even)
        return list(ensemble.predict(LATENT, TIMESTEP, tiles, guided=guided))

    with ThreadPoolExecutor(len(replicas)) as pool:
        return list(pool.map(predict, replicas, thread_groups(len(replicas))))


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(("ranks", "modules"), [(2, 1), (2, 4), (3, 2), (5, 4)])
@pytest.mark.parametrize("count", [1, 7, 20])
def test_all_ranks_get_all_predictions_and_do_as_much(
    ranks: int, modules: int, count: int, even: bool
) -> None:
    """A rank that has nothing left to predict repeats the last query, and keeps the others company."""
    tiles, replicas = list_tiles(count), [Recorder() for _ in range(ranks)]
    for predictions in predict_together(replicas, modules, tiles, even=even):
        assert are_equal(predictions, expect(tiles, 2))
    assert len({tuple(replica.sizes) for replica in replicas}) == 1
    asked = {query for replica in replicas for batch in replica.batches for query in batch.queries}
    assert asked == {Query(tile, branch) for tile in tiles for branch in range(2)}


def test_all_ranks_halve_their_batches_where_one_lacks_memory() -> None:
    tiles, replicas = list_tiles(8), [Recorder(), Recorder(largest=3)]
    for predictions in predict_together(replicas, 4, tiles):
        assert are_equal(predictions, expect(tiles, 2))
    assert replicas[0].sizes == replicas[1].sizes == [8, 4, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("even", "ranks", "sizes"),
    [(False, 1, [16] * 4), (True, 1, [13, 13, 12, 12]), (True, 2, [13, 12]), (True, 8, [7])],
)
def test_even_batches_waste_little_and_give_every_rank_as_many(
    even: bool, ranks: int, sizes: list[int]
) -> None:
    """25 tiles with guidance: 50 queries, at most 16 at a time."""
    tiles, replicas = list_tiles(25), [Recorder() for _ in range(ranks)]
    for predictions in predict_together(replicas, 8, tiles, even=even):
        assert are_equal(predictions, expect(tiles, 2))
    assert [replica.sizes for replica in replicas] == [sizes] * ranks


def test_every_size_that_a_step_may_choose_is_tried_once() -> None:
    replica = Recorder()
    ensemble = Ensemble(replica, CANVAS, 4, even=True)
    ensemble.predict_every_size(LATENT, TIMESTEP, list_tiles(1)[0])
    tried = sorted(replica.sizes)
    assert tried == list(range(1, 9))
    for count in range(1, 30):
        list(ensemble.predict(LATENT, TIMESTEP, list_tiles(count)))
    assert set(replica.sizes) == set(tried)
