"""What users of other tools suffer from: each test names the number of its item.

The items, and where else they are proved, stand in docs/RELIABILITY.md.
"""

import numpy as np
from dlzoo import create_model, load_run
from photos import folder


def test_pain_22_a_run_gives_its_weights_to_another(odd_run, tmp_path, call):
    """`--weights RUN`: all layers of it, its preprocessing, a head for the new classes."""
    source = load_run(odd_run.path).classifier.model
    given = {"weights": odd_run.path, "input_shape": (28, 28, 3)}
    model = create_model("lenet5", num_classes=2, **given)
    for mine, theirs in zip(model.layers, source.layers, strict=True):
        same = all(map(np.array_equal, mine.get_weights(), theirs.get_weights()))
        assert same == (mine.name != "logits"), mine.name
    whole = create_model("lenet5", num_classes=3, **given)
    assert all(map(np.array_equal, whole.get_weights(), source.get_weights()))
    argv = ("finetune", "--backbone", "lenet5", "--weights", odd_run.path, "--epochs", "1")
    argv += ("--preset", "fast", "-q", "--data", folder(tmp_path / "p"), "--out", tmp_path / "runs")
    code, out, errors = call(*argv)
    assert (code, errors) == (0, ""), errors


def test_pain_22_an_export_given_for_a_run_is_refused_with_the_path_to_use(
    odd_run, tmp_path, refused
):
    exported = tmp_path / "run" / "export" / "savedmodel"
    exported.mkdir(parents=True)
    (exported / "saved_model.pb").touch()
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "model.json").touch()
    argv = ("finetune", "--data", odd_run.photos, "--out", tmp_path / "runs", "--backbone")
    told = refused("model.not-a-run", 4, *argv, "lenet5", "--weights", exported)
    assert "SavedModel" in told and f"fix:   give {tmp_path / 'run'}\n" in told
    told = refused("model.weights-mismatch", 4, *argv, "mlp", "--weights", odd_run.path)
    assert "the run is of lenet5, not of mlp" in told and "--backbone lenet5" in told
