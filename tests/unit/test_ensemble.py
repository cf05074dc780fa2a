"""Several runs as one: ensembles, soups and mirror images, through the public surface."""

import json
import shutil

import keras
import numpy as np
import pytest
from dlzoo import console, ensemble, finetune, load_run, resume, zoo
from dlzoo.averaging import make_job
from dlzoo.config import resolve
from dlzoo.errors import Interrupted, ModelError, UsageError
from dlzoo.job import Job
from dlzoo.transfer import combine
from dlzoo.transfer.classifier import Classifier, to_probabilities
from dlzoo.transfer.plan import make_plan
from dlzoo.zoo import average, graph
from PIL import Image

COLOURS = {"blue": (90, 100, 150), "green": (95, 130, 100), "red": (140, 100, 95)}
SMALL = {"preset": "balanced", "size": 28, "quiet": True, "report": False, "weights": "none",
         "epochs": 2, "batch": 16}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for c, (name, colour) in enumerate(COLOURS.items()):
        (root / name).mkdir()
        for i in range(20):
            rng = np.random.default_rng(100 * c + i)
            pixels = np.clip(rng.normal(colour, 30, (40, 36, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return finetune("lenet5", photos, ensemble=2, name="both", out=str(out), **SMALL)


def small(size=28, **options):
    return zoo.create_model("lenet5", num_classes=3, input_shape=size, **options)


IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 48, 48, 3)).astype("float32")


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("how", ["probabilities", "logits"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_the_one_model_gives_the_average_of_its_members(task, how, mirror):
    """Members of two image sizes, as an outsider would average them."""
    classes = 1 if task == "binary" else 3
    inputs = [keras.Input((s, s, 3)) for s in (48, 32)]
    heads = [keras.layers.Dense(classes, name="logits") for _ in inputs]
    members = []
    for number, (x, head) in enumerate(zip(inputs, heads, strict=True)):
        y = keras.layers.Rescaling(0.01, name="normalize")(x)
        members.append(keras.Model(x, head(keras.layers.Flatten()(y))))
        members[-1].dlzoo = graph.Built(f"n{number}", None, {"num_classes": classes},
                                        zoo.spec.Preprocess(size=x.shape[1]))  # fmt: skip
    made = average.average(members, task, how, mirror=mirror)
    smaller = keras.layers.Resizing(32, 32)
    views = [IMAGES, IMAGES[:, :, ::-1]] if mirror else [IMAGES]
    logits = [m(v).numpy() for v in views for m, v in zip(members, (v, smaller(v)), strict=True)]
    if how == "logits":
        expected = to_probabilities(np.mean(logits, 0), task)
    else:
        expected = np.mean([to_probabilities(z, task) for z in logits], 0)
    np.testing.assert_allclose(to_probabilities(made(IMAGES), task), expected, atol=2e-6)


@pytest.mark.full
def test_an_ensemble_is_a_run_like_any_other(run, photos):
    assert run.status == "finished" and graph.built(run.classifier.model).members == 2
    told = run.metrics["ensemble"]
    assert [m["model"] for m in told["members"]] == ["lenet5"] * 2
    assert told["average"] in average.HOWS
    members = [load_run(m["run"]) for m in told["members"]]
    logits = [np.log(m.classifier.answers(m.data, "test")) for m in members]
    expected = np.mean([np.exp(z) for z in logits], 0)
    if told["average"] == "logits":
        expected = to_probabilities(np.mean(logits, 0), "multiclass")
    again = load_run(run.path)
    np.testing.assert_allclose(again.classifier.answers(again.data, "test"), expected, atol=1e-3)
    assert again.evaluate("test") == run.metrics["test"]
    assert again.predict(photos / "red" / "1.png", topk=3)[0].error is None
    assert not np.array_equal(*(m.classifier.model.get_weights()[-2] for m in members))
    temperatures = [m.classifier.origin["temperature"] for m in members]
    assert temperatures[0] != temperatures[1]
    assert "temperature" not in again.classifier.origin  # of the average there is none


def test_a_plan_in_time_and_a_dry_run_are_of_one_member_of_several(monkeypatch, capsys):
    """What is planned at the start is what each member then does."""
    planned = []

    def build(job, begun=None):
        planned.append(job.config.time)
        job.plan = make_plan("balanced", overrides={})

    monkeypatch.setattr(Job, "build", build)
    monkeypatch.setattr(Job, "rehearse", lambda job: {"stages": [job.build()]})
    console.setup(quiet=False)
    settings = resolve({"backbone": "lenet5,mlp", "time": "10m"}).config
    assert make_job(settings, None).rehearse()["members"] == ["lenet5", "mlp"]
    assert planned == [300]
    assert "2 models" in capsys.readouterr().err


@pytest.mark.full
def test_an_ensemble_is_explained_reported_and_exported(run):
    image = run.data.records("test")[0].encoded()
    assert run.explain(image).heat.shape == (28, 28)
    page = run.report(seconds=1.0).read_text("utf-8")
    assert page.count("<td>lenet5</td>") == 2 and "members are averaged" in page
    assert "as the model gives them, without it" in page  # no temperature of the average
    figures = run.export("keras", "tflite")
    assert figures["keras"]["passed"] and figures["tflite"]["passed"]
    assert figures["keras"]["max_difference"] < 1e-4


@pytest.mark.full
def test_an_ensemble_goes_on_where_it_was_stopped(run, photos, tmp_path, monkeypatch):
    """The first member is finished, the second one is not there yet."""
    from dlzoo.averaging import Ensemble

    whole = Ensemble._member

    def second_fails(self, directory, i):
        if i == 1:
            raise KeyboardInterrupt
        return whole(self, directory, i)

    monkeypatch.setattr(Ensemble, "_member", second_fails)
    with pytest.raises(Exception, match=r"dlzoo resume|resume="):
        finetune("lenet5", photos, ensemble=2, name="both", out=str(tmp_path), **SMALL)
    begun = json.loads((tmp_path / "both/members/1/run.json").read_text())
    monkeypatch.setattr(Ensemble, "_member", whole)
    again = resume(tmp_path / "both", quiet=True, report=False)
    assert json.loads((tmp_path / "both/members/1/run.json").read_text()) == begun
    assert again.metrics["test"]["confusion"] == run.metrics["test"]["confusion"]


@pytest.mark.full
def test_an_ensemble_that_was_stopped_twice_keeps_its_time(photos, tmp_path, monkeypatch):
    """Each member has a share of it, which is not the time of the whole."""
    from dlzoo.averaging import Ensemble

    def stopped(self, directory, i):
        raise KeyboardInterrupt

    monkeypatch.setattr(Ensemble, "_member", stopped)
    given = {"ensemble": 2, "time": 1000, "name": "both", "out": str(tmp_path), **SMALL}
    for _ in range(3):
        with pytest.raises(Interrupted):
            finetune("lenet5", photos, resume="auto", **given)


def test_finished_runs_become_one(run, tmp_path, call):
    one, two = (m["run"] for m in run.metrics["ensemble"]["members"])
    code, stdout, stderr = call("ensemble", one, two, "--average", "logits", "--tta", "on",
                                "--out", tmp_path, "--name", "x", "--quiet")  # fmt: skip
    assert code == 0, stderr
    made = load_run(stdout.strip())
    assert made.path == tmp_path / "x"
    assert made.metrics["ensemble"]["average"] == "logits"
    assert graph.built(made.classifier.model).copies == 2
    assert made.evaluate("test") == made.metrics["test"]


def test_one_of_finished_runs_that_was_killed_goes_on_with_them(run, tmp_path, monkeypatch):
    """One run alone, averaged with its mirror images, would else be trained anew."""
    from dlzoo.averaging import Ensemble

    def killed(self, directory, outcome):
        raise KeyboardInterrupt

    one = run.metrics["ensemble"]["members"][0]["run"]
    asked = {"tta": "on", "out": tmp_path, "name": "x", "quiet": True, "report": False}
    with monkeypatch.context() as at, pytest.raises(Interrupted, match=r"dlzoo\.resume"):
        at.setattr(Ensemble, "finish", killed)
        ensemble(one, **asked)
    made = resume(tmp_path / "x", quiet=True, report=False)
    assert [m["run"] for m in made.metrics["ensemble"]["members"]] == [one]
    assert graph.built(made.classifier.model).copies == 2


def test_runs_of_other_photos_or_none_are_refused(run, photos, tmp_path):
    one = run.metrics["ensemble"]["members"][0]["run"]
    other = shutil.copytree(one, tmp_path / "other")
    about = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(about | {"data": "another"}))
    with pytest.raises(UsageError, match=r"ensemble\.data"):
        ensemble(one, other, quiet=True)
    with pytest.raises(UsageError, match=r"ensemble\.few"):
        ensemble()
    shutil.copytree(one, cropped := tmp_path / "cropped")
    about = json.loads((cropped / "model/model.json").read_text())
    about["preprocess"]["crop"] /= 2
    (cropped / "model/model.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"model\.not-alike"):
        ensemble(one, cropped, out=tmp_path, name="none", quiet=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(UsageError, match=r"ensemble\.alike"):
        finetune(data=photos, ensemble=2, preset="fast", out=str(tmp_path), quiet=True)


@pytest.mark.full
def test_a_soup_takes_in_only_what_makes_it_better(run):
    """Weights of a good member, of its copy with a little noise, and of one that knows nothing."""
    good = run.metrics["ensemble"]["members"][0]["run"]
    good = load_run(good).classifier
    data = run.data
    members = [good]
    for noise in (0.0, 10.0):
        rng = np.random.default_rng(0)
        model = keras.models.clone_model(good.model)
        model.dlzoo = good.model.dlzoo
        model.set_weights([
            w + noise * rng.normal(size=w.shape).astype("float32") if noise and w.ndim == 2 else w
            for w in good.model.get_weights()
        ])  # fmt: skip
        members.append(Classifier(model, good.classes, good.task, good.preprocess, good.origin))
    made, told = combine.together(members, data, "weights")
    assert told["loss"] <= min(m["loss"] for m in told["members"])
    assert not told["members"][2]["in"]
    assert graph.built(made.model).members == 1
    with pytest.raises(ModelError, match=r"model\.not-alike"):
        other = small(48)
        rule = graph.built(other).preprocess
        origin = {"create": graph.built(other).create}
        crop = good.preprocess.crop
        rule = rule.resized(48, crop)
        combine.together([good, Classifier(other, good.classes, good.task, rule, origin)],
                         data, "weights")  # fmt: skip


def test_an_ensemble_that_learnt_of_mirror_images_later_is_told_as_what_it_is(
    run, photos, tmp_path
):
    asked = {**SMALL, "out": str(tmp_path)}
    other = finetune("mlp", photos, split_file=str(run.directory.manifest), **asked)
    asked = {key: asked[key] for key in ("out", "quiet", "report")}
    both = ensemble(run.metrics["ensemble"]["members"][0]["run"], other, **asked)
    made = ensemble(both, tta="on", **asked)
    assert [member["model"] for member in made.metrics["ensemble"]["members"]] == ["lenet5 + mlp"]
    assert made.classifier.origin["backbone"] == "lenet5 + mlp"
    for each, mirrored in ((both, False), (made, True)):
        page = each.report(seconds=1.0).read_text("utf-8")
        assert "One ensemble of 2 models" in page
        assert ("It was made of this run" in page) == mirrored
        for text in (page, (each.path / "MODEL_CARD.md").read_text("utf-8")):
            assert ("averages over each photo and its mirror image" in text) == mirrored


def test_mirror_images_are_averaged_and_ship(run, tmp_path, photos):
    member = run.metrics["ensemble"]["members"][0]["run"]
    plain = load_run(member)
    both = combine.mirrored(plain.classifier)
    images = IMAGES[:, :28, :28]
    expected = (plain.classifier.probabilities(images)
                + plain.classifier.probabilities(images[:, :, ::-1])) / 2  # fmt: skip
    np.testing.assert_allclose(both.probabilities(images), expected, atol=1e-6)
    np.testing.assert_allclose(both.probabilities(images[:, :, ::-1]), expected, atol=1e-6)
    both.save(tmp_path / "model")
    np.testing.assert_allclose(
        Classifier.load(tmp_path / "model").probabilities(images), expected, atol=1e-6
    )
    assert combine.mirrored(both) is both
    # nor is there more to mirror in several that do so, each of which is twice the work
    several = average.average([both.model] * 2, both.task)
    assert graph.gmacs(several) == 2 * graph.gmacs(both.model)
    several = Classifier(several, both.classes, both.task, both.preprocess, both.origin)
    assert combine.mirrored(several) is several
    # and it can begin another run: no weight is named otherwise
    zoo.create_model("lenet5", num_classes=3, input_shape=28, weights=tmp_path / "model")
    never = Classifier(plain.classifier.model, both.classes, both.task, both.preprocess,
                       {**plain.classifier.origin, "flip": False})  # fmt: skip
    with pytest.raises(ModelError, match=r"model\.never-mirrored"):
        combine.mirrored(never)
