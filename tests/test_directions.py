"""Directions that are kept exactly: what they keep, how they are learnt, and that a run with them is as any other."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.linalg import hadamard

from pursuit import Run
from pursuit.errors import RunError, SettingsError, StoreError
from pursuit.gradients import directions as module
from pursuit.gradients import make_projection
from pursuit.gradients.directions import (
    DirectedProjection,
    leading_directions,
    mixed,
    read_directions,
    wide_dimension,
    write_directions,
)
from pursuit.run.jobs import Share, extract_share
from pursuit.run.status import status, table
from test_projection import low_rank_gradients, project, unbiased_error
from test_run import SMALL, place, write_rows  # noqa: F401  (place is a fixture)

DIRECTED = {**SMALL, "features": {**SMALL["features"], "directions": 0.25}}


def orthonormal(size, count, seed=0):
    return torch.linalg.qr(torch.randn(size, count, generator=torch.Generator().manual_seed(seed)))[0]


def written_out(size, basis, dimension, seed=0):
    """(P, d) the whole map as a matrix: what it makes of the unit vectors."""
    wide = make_projection("sparse", size, len(basis), seed)
    return project(DirectedProjection(wide, basis, dimension, seed), torch.eye(size)), project(wide, torch.eye(size))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 60), wide=st.integers(1, 80), dimension=st.integers(2, 40), share=st.floats(0, 0.5),
    seed=st.integers(0, 3),
)  # fmt: skip
def test_inner_products_along_the_directions_are_exact(size, wide, dimension, share, seed):
    basis = orthonormal(wide, min(int(share * dimension), wide), seed)
    small, whole = (matrix.double() for matrix in written_out(size, basis, dimension, seed))
    along = whole @ basis.double() @ basis.double().T
    # ⟨A g, A h⟩ = ⟨U Uᵀ g, h⟩ + ⟨S r, S s⟩ for what is left of both, r and s: nothing of one part in the other
    left = whole - along
    sketch = make_projection("sparse", wide, dimension - basis.shape[1], seed)
    sketch = module.SparseProjection(wide, sketch.dimension, seed, use=module.REST)
    rest = project(sketch, left.float()).double()
    torch.testing.assert_close(small @ small.T, along @ along.T + rest @ rest.T, atol=1e-5, rtol=1e-5)


def test_inner_products_are_right_on_average():
    size, basis = low_rank_gradients().shape[1], orthonormal(512, 16)

    def project_of(seed):
        projection = DirectedProjection(make_projection("sparse", size, 512, seed), basis, 64, seed)
        return lambda rows: project(projection, rows)

    assert unbiased_error(project_of) > 0  # each seed errs; that they do not on average is asserted there


@pytest.mark.parametrize("dimension", [1, 2, 6, 7, 64, 96])
def test_mixing_is_a_hadamard_transform_of_runs(dimension):
    rows = torch.randn(3, dimension)
    run = dimension & -dimension
    expected = rows.view(3, -1, run).numpy() @ hadamard(run) / run**0.5
    np.testing.assert_allclose(mixed(rows).view(3, -1, run).numpy(), expected, atol=1e-5)


def test_no_number_stands_out_after_mixing():
    """A row along one direction is spread over all numbers: one bit, or one byte, of each tells as much."""
    basis = orthonormal(256, 8)
    rows = project(DirectedProjection(make_projection("none", 256, 256, 0), basis, 64, 0), basis.T[:1].contiguous())
    np.testing.assert_allclose(rows.abs().numpy(), 64**-0.5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 30), size=st.integers(1, 40), count=st.integers(1, 20), rank=st.integers(0, 10))
def test_directions_are_the_leading_singular_ones(rows, size, count, rank):
    generator = np.random.default_rng(rows * size)
    known = generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, size))
    basis = leading_directions(known.astype(np.float32), count).double().numpy()
    values, expected = np.linalg.svd(known.astype(np.float32).astype(float), full_matrices=False)[1:]
    held = min(rows, size, rank, count)
    assert basis.shape[1] <= held
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    left = known - known @ basis @ basis.T
    best = np.sqrt(np.square(values[held:]).sum())  # Eckart and Young: nothing leaves less
    assert np.linalg.norm(left) <= best + 1e-3 * (1 + np.linalg.norm(known))
    assert expected.shape[1] == size


def test_a_file_of_directions_that_is_damaged_says_what_to_do(tmp_path):
    path = tmp_path / "directions.safetensors"
    with pytest.raises(StoreError, match="Delete it"):
        read_directions(str(path))
    write_directions(path, orthonormal(8, 2), 8, ["a"])
    assert read_directions(str(path)).targets == ("a",)
    whole = path.read_bytes()
    for damaged in (whole[:20], whole[:-4] + b"oops", whole.replace(b'[\\"a\\"]', b'[\\"b\\"]')):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="Delete it"):
            read_directions(str(path))


def test_directions_that_were_learnt_anew_are_read_anew(tmp_path):
    """A folder that is deleted and begun again in one process, as in a notebook, has other directions."""
    path = tmp_path / "directions.safetensors"
    for seed in (0, 1):
        basis = orthonormal(8, 2, seed)
        write_directions(path, basis, 8, [])
        assert torch.equal(read_directions(str(path)).basis, basis)


def begun(place, folder, **more):  # noqa: F811
    given = {"model": place / "model", "pool": place / "pool.jsonl", "target": place / "target.jsonl", **DIRECTED}
    return Run(folder, **{**given, **more})


def stored(run):
    return {path.relative_to(run.folder.features): path.read_bytes() for path in run.folder.features.rglob("*.safe*")}


@pytest.fixture(scope="module")
def whole(place):  # noqa: F811
    run = begun(place, place / "directed")
    run.extract()
    return run


def wide_rows(place, folder):  # noqa: F811
    """The pool's and the target's rows at the last checkpoint before they are brought to d, as another run has them."""
    wide = {**SMALL["features"], "dimension": wide_dimension(64), "dtype": "float32"}
    run = begun(place, folder, **{**SMALL, "features": wide})
    return [np.asarray(found.checkpoint(1)[:], np.float64) for found in (run.extract(), run.target_features())]


def test_a_run_keeps_what_the_target_tells_far_better_than_a_sketch(place, whole, tmp_path):  # noqa: F811
    pool, target = wide_rows(place, tmp_path / "wide")
    exact = pool @ target.mean(axis=0)
    errors = {}
    plain = begun(place, tmp_path / "plain", **SMALL)
    for name, run in (("directed", whole), ("plain", plain)):
        rows, towards = (np.asarray(f.checkpoint(1)[:], float) for f in (run.extract(), run.target_features()))
        assert rows.shape[1] == 64
        errors[name] = np.sqrt(np.square(rows @ towards.mean(axis=0) - exact).mean())
    assert errors["directed"] < errors["plain"] / 3


def test_its_rows_are_those_of_a_wide_run_times_the_written_matrix(place, whole, tmp_path):  # noqa: F811
    pool, _ = wide_rows(place, tmp_path / "wide")
    basis = read_directions(str(whole.folder.directions)).basis
    map_ = DirectedProjection(make_projection("none", len(basis), len(basis), 0), basis, 64, 0)
    expected = torch.nn.functional.normalize(project(map_, torch.from_numpy(pool).float()), dim=1)
    found = np.asarray(whole.extract().checkpoint(1)[:], np.float32)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3)  # float16


def test_the_directions_do_not_hang_on_batches_and_a_kill_changes_nothing(place, whole, tmp_path, monkeypatch):  # noqa: F811
    other = begun(place, tmp_path / "other", features={**DIRECTED["features"], "batch_tokens": 4096})
    import pursuit.run.directions as stage

    real, calls = stage.extract, []

    def second_dies(*what, **how):
        calls.append(how["describe"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*what, **how)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "extract", second_dies)
        with pytest.raises(KeyboardInterrupt):
            other.extract()
    assert not other.folder.directions.exists()
    again = Run(tmp_path / "other")
    again.warmup()
    assert again.folder.directions.read_bytes() == whole.folder.directions.read_bytes()
    assert [path.name for path in again.folder.path.glob("directions*")] == ["directions.safetensors"]


def test_jobs_wait_for_the_directions_and_make_the_same_bits(place, whole, tmp_path):  # noqa: F811
    run = begun(place, tmp_path / "run")
    run.stages.warmup()
    with pytest.raises(RunError, match="pursuit warmup"):
        extract_share(tmp_path / "run", Share(1, 2))
    run.warmup()
    for number in (2, 1):
        extract_share(tmp_path / "run", Share(number, 2))
    assert stored(run) == stored(whole)


def test_a_later_target_uses_the_same_directions_and_is_told_of(place, whole, tmp_path):  # noqa: F811
    write_rows(tmp_path / "later.jsonl", 5, seed=9)
    before = stored(whole)
    later = Run(whole.folder.path, target=tmp_path / "later.jsonl")
    with pytest.warns(UserWarning, match="learnt without this target"):
        later.select("less", 5, out=tmp_path / "less.jsonl")
    assert stored(later) == before


def test_a_lost_file_is_made_again_from_the_target_that_the_run_began_with(place, whole, tmp_path):  # noqa: F811
    shutil.copytree(whole.folder.path, tmp_path / "run")
    (tmp_path / "run" / "directions.safetensors").unlink()
    write_rows(tmp_path / "later.jsonl", 5, seed=9)
    with pytest.warns(UserWarning, match="learnt without this target"):
        Run(tmp_path / "run", target=tmp_path / "later.jsonl").select("less", 5, out=tmp_path / "less.jsonl")
    assert (tmp_path / "run" / "directions.safetensors").read_bytes() == whole.folder.directions.read_bytes()


def test_without_a_target_the_pool_alone_is_known(place, tmp_path):  # noqa: F811
    run = begun(place, tmp_path / "run", target=[])
    run.extract(append=place / "target.jsonl")
    assert read_directions(str(run.folder.directions)).targets == ()
    assert run.extract().num_rows == 128
    assert len(run.select("tagcos", 6, clusters=3, out=tmp_path / "out.jsonl").selection) == 6


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"directions": 0.2, "projection": "rademacher"}, "beside a sketch"),
        ({"directions": 0.2, "projection": "none"}, "beside a sketch"),
        ({"directions": 0.1, "dimension": 5}, "take a larger share"),
        ({"directions": 0.7}, "less than or equal to 0.5"),
    ],
)
def test_what_cannot_be_kept_is_said(place, tmp_path, features, said):  # noqa: F811
    with pytest.raises(SettingsError, match=said):
        begun(place, tmp_path / "run", features=features)


def test_status_tells_of_directions_and_reads_them_if_asked(place, whole, tmp_path):  # noqa: F811
    assert status(whole.folder.path, verify=True).directions == "there"
    begun(place, tmp_path / "plain", **SMALL).encode()
    assert status(tmp_path / "plain").directions == ""
    shutil.copytree(whole.folder.path, tmp_path / "run")
    kept = tmp_path / "run" / "directions.safetensors"
    kept.write_bytes(kept.read_bytes()[:-4] + b"oops")
    assert status(tmp_path / "run").directions == "there", "a file that is there counts, unless it is read"
    found = status(tmp_path / "run", verify=True)
    assert found.directions == "damaged"
    console = Console(record=True, width=120)
    console.print(table(found))
    assert "damaged: delete the file" in console.export_text()
    kept.unlink()
    assert status(tmp_path / "run", verify=True).directions == "not yet"
