"""The gradient of a large table is sparse on one CPU: less memory, the same step."""
import pytest
import torch
import torch.nn.functional as F

import train
from checkpoints.build import build_method
from data import load_data
from flags import configure
from runs import TINY
from runtime import optim
from runtime.trainer import Trainer

ADAMW = dict(lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), fused=True)


@pytest.mark.parametrize("V, room", [(50, 64), (50, 1 << 20), (48, 64), (3, 1)])
def test_adamw_moves_all_rows_of_a_table_by_its_sparse_gradient(V, room, monkeypatch):
    """Bit by bit as torch's on the dense one, of tokens that are repeated, some rows at a time."""
    monkeypatch.setattr(optim, "ROOM", room)
    torch.manual_seed(0)
    start = torch.randn(V, 8)  # (V, D)
    tables = [start.clone().requires_grad_() for _ in range(2)]  # (V, D) each
    ours, theirs = optim.AdamW(tables[:1], **ADAMW), torch.optim.AdamW(tables[1:], **ADAMW)
    for _ in range(4):
        ids, weights = torch.randint(V, (2, 6)), torch.randn(2, 6, 8)  # (B, L), (B, L, D)
        for table, optimizer, sparse in zip(tables, (ours, theirs), (True, False)):
            optimizer.zero_grad()
            (F.embedding(ids, table, sparse=sparse) * weights).sum().backward()
            assert table.grad.is_sparse == sparse
            optimizer.step()
        assert torch.equal(*tables)
    found, expected = ours.state_dict()["state"][0], theirs.state_dict()["state"][0]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("grad_clip", [0.0, 0.01])
def test_a_step_is_the_same_as_with_a_dense_gradient(grad_clip):
    config = configure(train.Config, **{**TINY, "batch_size": 4, "muon_dtype": "float32",
                                        "grad_clip": grad_clip, "gradient_accumulation_steps": 2})
    data = load_data("toy", 8)
    sparse, dense = (Trainer(config, data, build_method(config, data.encoding),
                             torch.device("cpu")) for _ in range(2))
    assert sparse.model.sparse_gradient  # 32 tokens read less than all of 114 rows
    dense.model.sparse_gradient = False
    for step in range(3):
        found, expected = (train.train_step(trainer, step) for trainer in (sparse, dense))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(sparse.model.state_dict(), dense.model.state_dict(), rtol=1e-4,
                               atol=1e-6)


def test_where_a_step_reads_as_many_tokens_as_there_are_rows_it_is_dense():
    config = configure(train.Config, **{**TINY, "batch_size": 16, "muon_dtype": "float32"})
    data = load_data("toy", 8)
    trainer = Trainer(config, data, build_method(config, data.encoding), torch.device("cpu"))
    assert not trainer.model.sparse_gradient
