"""Ranks as real processes; each imports this file, so it imports little."""

from pathlib import Path

import torch

from training.ranks import average_gradients


def test_ranks_get_the_mean_gradient(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_as_rank, (2, tmp_path), nprocs=2)
    gradients = [torch.load(tmp_path / f"{rank}.pt").flatten().tolist() for rank in range(2)]
    assert gradients == [[0.5, 0.5]] * 2


def _train_as_rank(rank: int, ranks: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    layer = torch.nn.Linear(2, 1, bias=False)
    layer(torch.full((1, 2), float(rank))).sum().backward()
    average_gradients(layer)
    torch.save(layer.weight.grad, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
