"""``dmlkd eval`` and ``dmlkd compare`` as a user meets them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dmlkd.cli.plots import plot_recall
from dmlkd.config import load_config
from dmlkd.data.transforms import plain
from dmlkd.models import EmbeddingModel, prepared_by
from dmlkd.retrieval import evaluate
from dmlkd.retrieval.postprocessing import evaluate_postprocessed
from dmlkd.retrieval.structure import structure


@pytest.fixture
def files(tmp_path):
    """A folder with embeddings in each form."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 9
    z = (rng.standard_normal((9, 8))[y] + 0.8 * rng.standard_normal((90, 8))).astype(np.float32)
    save_file({"embeddings": torch.from_numpy(z), "labels": torch.from_numpy(y)}, tmp_path / "e.safetensors")
    np.savez(tmp_path / "queries.npz", embeddings=z[:30], labels=y[:30])
    np.save(tmp_path / "gallery.npy", z[30:])
    np.save(tmp_path / "labels.npy", y[30:])
    np.savez(tmp_path / "worse.npz", embeddings=z + rng.standard_normal(z.shape), labels=y)
    return tmp_path, z, y


def test_a_file_of_embeddings_is_measured(dmlkd, files):
    folder, z, y = files
    code, out, _ = dmlkd("eval", "--embeddings", folder / "e.safetensors", "--json")
    assert code == 0
    expected = evaluate(z, y)
    assert json.loads(out) == {**expected, "queries": 90, "left_out": 0}
    code, out, _ = dmlkd("eval", "--embeddings", folder / "e.safetensors", "--metric", "mrr", "--metric", "eer")
    assert code == 0
    assert "mrr" in out
    assert "recall@1" not in out


def test_queries_and_a_gallery_are_measured(dmlkd, files):
    folder, z, y = files
    gallery = ("--gallery", folder / "gallery.npy", "--gallery-labels", folder / "labels.npy")
    code, out, _ = dmlkd("eval", "--embeddings", folder / "queries.npz", *gallery, "--distance", "euclidean", "--json")
    assert code == 0
    names = [name for name in json.loads(out) if name not in ("queries", "left_out")]
    assert "nmi" not in names
    expected = evaluate(z[:30], y[:30], gallery=z[30:], gallery_labels=y[30:], metrics=names, distance="euclidean")
    assert {name: json.loads(out)[name] for name in names} == dict(expected)


def test_identities_in_both_files_are_left_out(dmlkd, files):
    folder, z, y = files
    np.savez(folder / "a.npz", embeddings=z, labels=y, ids=np.arange(90))
    code, out, _ = dmlkd("eval", "--embeddings", folder / "a.npz", "--gallery", folder / "a.npz", "--json")
    expected = evaluate(z, y)
    assert code == 0
    assert json.loads(out)["map@r"] == expected["map@r"]


def test_intervals_values_per_query_and_a_plot_are_written(dmlkd, files):
    folder, _, _ = files
    wanted = ("--per-query", folder / "q.parquet", "--plot", folder / "p.png", "--intervals")
    code, out, _ = dmlkd("eval", "--embeddings", folder / "e.safetensors", "--metric", "recall@1", *wanted, "--json")
    assert code == 0
    low, high = json.loads(out)["intervals"]["recall@1"]
    assert low <= json.loads(out)["recall@1"] <= high
    assert list(json.loads(out)) == ["recall@1", "queries", "left_out", "intervals"]
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "q.parquet").is_file()
    assert dmlkd("eval", "--embeddings", folder / "e.safetensors", "--intervals")[1].count("95 %") == 2


def test_a_long_name_leaves_room_for_the_curve(tmp_path):
    plot_recall(tmp_path / "p.svg", {"/a/long/way/" * 20 + "e.safetensors": {"recall@1": 0.5, "recall@2": 0.7}})
    assert (tmp_path / "p.svg").stat().st_size > 5000


def test_an_approximate_index_reports_its_recall(dmlkd, files):
    folder, _, _ = files
    arguments = ("eval", "--embeddings", folder / "e.safetensors", "--metric", "recall@1", "--index", "HNSW8")
    assert "of the true nearest neighbours" in dmlkd(*arguments)[1]
    assert json.loads(dmlkd(*arguments, "--search", "efSearch=64", "--json")[1])["search_recall"] == 1


def test_a_saved_model_is_measured_on_a_registered_data_set(dmlkd, tmp_path):
    EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4}).save_pretrained(tmp_path / "model")
    code, out, err = dmlkd("eval", "--model", tmp_path / "model", "--data", "digits", "--metric", "recall@1", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["queries"] > 500


def test_how_images_are_prepared_is_said_once(dmlkd, tmp_path):
    model = EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4})
    model.preparation = prepared_by(plain, image_size=16, channels=1)
    model.save_pretrained(tmp_path / "model")
    code, out, err = dmlkd("eval", "--model", tmp_path / "model", "--data", "digits", "--set", "image_size=8")
    assert (code, out) == (2, "")
    assert "says how its images are prepared: leave out image_size" in " ".join(err.split())


def test_methods_are_compared_query_by_query(dmlkd, files):
    folder, _, _ = files
    for name in ("e.safetensors", "worse.npz"):
        dmlkd("eval", "--embeddings", folder / name, "--per-query", folder / f"{name}.parquet")
    runs = (folder / "worse.npz.parquet", folder / "e.safetensors.parquet")
    code, out, _ = dmlkd("compare", *runs, "--metric", "map@r")
    assert code == 0
    assert f"{runs[1]} scores higher than {runs[0]}" in out.replace("\n", " ")
    assert "One run of a method" in out
    found = json.loads(dmlkd("compare", *runs, "--json")[1])
    first = found["comparisons"][0]
    assert first["difference"] == pytest.approx(first["second_mean"] - first["first_mean"])
    assert first["wins"] + first["ties"] + first["losses"] == 9
    assert {row["metric"] for row in found["comparisons"]} >= {"recall@1", "map@r"}


def run_folder(folder, *overrides):
    """A run folder as far as eval and compare read it, with an untrained model."""
    config = load_config(Path(__file__).parents[2] / "configs" / "digits.yaml", overrides)[0]
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(config.train.seed)
    width = 8 if config.model["dim"] == 16 else 4
    model = EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": width})
    model.save_pretrained(folder / "model")
    return folder


def test_runs_that_differ_in_the_seed_are_runs_of_one_method(dmlkd, tmp_path):
    short = ("data.image_size=8", "data.transform=plain")
    one = [run_folder(tmp_path / f"a{seed}", *short, f"train.seed={seed}") for seed in range(2)]
    other = [run_folder(tmp_path / f"b{seed}", *short, f"train.seed={seed}", "model.dim=16") for seed in range(2)]
    code, out, err = dmlkd("compare", one[0], other[0], one[1], other[1], "--metric", "recall@1", "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["comparisons"]
    assert row["runs"] == [2, 2]
    assert row["first"] == f"{one[0]} and 1 more"
    assert any("only 2 runs" in line for line in json.loads(out)["words"])
    code, _, err = dmlkd("compare", *one)
    assert code == 2
    assert "all runs are of one method" in err


EMBEDDINGS = ["eval", "--embeddings"]

WRONG = {
    "two sources": (["eval", "--run", "a", "--model", "b"], "got --run and --model"),
    "stray option": (["eval", "--run", "a", "--gallery", "b.npy"], "--gallery does not go with --run"),
    "no labels": ([*EMBEDDINGS, "gallery.npy"], "gallery.npy has no labels: give them as --labels FILE.npy"),
    "no file": ([*EMBEDDINGS, "nowhere.npz"], "nowhere.npz does not exist"),
    "bad metric": ([*EMBEDDINGS, "e.safetensors", "--metric", "recal@1"], "did you mean 'recall@1'"),
    "bad distance": ([*EMBEDDINGS, "e.safetensors", "--distance", "cosin"], "did you mean 'cosine'"),
    "gallery labels alone": ([*EMBEDDINGS, "e.safetensors", "--gallery-labels", "labels.npy"], "needs --gallery"),
    "model without data": (["eval", "--model", "x"], "--model needs --data"),
    "model that is none": (
        ["eval", "--model", "x", "--data", "digits"],
        "model folder x does not exist",
    ),
    "bad plot": ([*EMBEDDINGS, "e.safetensors", "--plot", "p.xyz"], "names no picture"),
    "bad per query": ([*EMBEDDINGS, "e.safetensors", "--per-query", "p.csv"], "must end in .parquet"),
    "one run": (["compare", "a"], "at least two runs, got 1"),
    "run that is not there": (["compare", "a", "b"], "run folder a does not exist"),
    "no values": (["compare", "queries.npz", "worse.npz"], "does not hold values per query"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line_with_exit_code_2(dmlkd, files, monkeypatch, arguments, said):
    monkeypatch.chdir(files[0])
    before = sorted(files[0].rglob("*"))
    code, out, err = dmlkd(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(files[0].rglob("*")) == before


@pytest.mark.parametrize("output", [("--plot", "p.xyz"), ("--per-query", "p.csv"), ("--plot", "nowhere/p.png")])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(dmlkd, output):
    code, _, err = dmlkd("eval", "--embeddings", "not-there.npz", *output)
    assert code == 2
    assert output[1].split("/")[0] in err
    assert "not-there" not in err


@pytest.mark.parametrize("option", [("--expand", "queries"), ("--expand", "both"), ("--rerank", "k_reciprocal")])
def test_reranking_and_expansion_are_options(dmlkd, files, option):
    folder, z, y = files
    code, out, _ = dmlkd("eval", "--embeddings", folder / "e.safetensors", "--json", *option)
    assert code == 0
    expected = evaluate_postprocessed(z, y, **{option[0][2:]: option[1]}, metrics=["recall@1", "map@r"])
    assert {name: json.loads(out)[name] for name in expected} == dict(expected)
    assert "nmi" not in json.loads(out)


def test_the_structure_of_the_space_is_an_option(dmlkd, files):
    folder, z, y = files
    code, out, _ = dmlkd("eval", "--embeddings", folder / "e.safetensors", "--json", "--structure")
    assert code == 0
    assert json.loads(out)["structure"] == structure(z, y)._asdict()
    np.savez(folder / "flat.npz", embeddings=np.tile(z[:, :1], (1, 8)), labels=y)  # of rank 1
    lies = json.loads(
        dmlkd("eval", "--embeddings", folder / "flat.npz", "--json", "--structure")[1], parse_constant=int
    )
    assert lies["structure"]["rho_spectrum"] is None
    _, out, _ = dmlkd("eval", "--embeddings", folder / "e.safetensors", "--structure")
    assert f"hubness       {structure(z, y).hubness:.4f}" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rerank", "diffuse"], "unknown re-ranking 'diffuse'; did you mean 'diffusion'"),
        (["--expand", "queries", "--rerank", "diffusion"], "give one of expand and rerank"),
        (["--expand", "queries", "--distance", "euclidean"], "--distance does not go with --expand"),
        (["--rerank", "diffusion", "--sample", "5"], "--sample does not go with --rerank"),
        (["--rerank", "diffusion", "--metric", "nmi"], "nmi is no metric of ranked retrieval"),
        (
            ["--structure", "--gallery", "gallery.npy", "--gallery-labels", "labels.npy"],
            "--structure is of one set of embeddings",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(dmlkd, files, monkeypatch, options, message):
    monkeypatch.chdir(files[0])
    code, _, err = dmlkd("eval", "--embeddings", "queries.npz", *options)
    assert code == 2
    assert message in err


def test_class_scores_of_a_run_with_held_out_images_are_shown_by_train_and_eval(dmlkd, configs, tmp_path):
    options = [
        "train.epochs=1",
        "model.backbone_args.width=4",
        "metric_loss={name: NormalizedSoftmaxLoss, temperature: 0.1}",
        "miner=null",
        "distill=[]",
        "data.held_out_images=0.25",
    ]
    sets = [word for option in options for word in ("--set", option)]
    code, trained, err = dmlkd("train", "--config", configs / "digits.yaml", *sets, "--out", tmp_path / "run")
    assert code == 0, err
    seen = json.loads((tmp_path / "run" / "metrics.json").read_text())["seen"]
    code, shown, _ = dmlkd("eval", "--run", tmp_path / "run")
    assert code == 0
    for out in (trained, shown):
        assert "held-out images of the training classes" in out
        assert f"{seen['adaptive_ece']:.4f}" in out
    code, out, _ = dmlkd("eval", "--run", tmp_path / "run", "--json")
    assert json.loads(out)["seen"] == pytest.approx(seen, abs=1e-6)
