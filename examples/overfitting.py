# %% [markdown]
# # Overfitting, and what helps against it
# A dense net with 670,000 weights and 500 photos learns them by heart: the loss on them goes to 0
# while the loss on others grows. Each remedy is tried against the plain net, with the same first
# weights and the same order of the photos, once for each seed; one number alone would say little.

# %%
import dlzoo
import keras
import numpy as np
from dlzoo import course
from dlzoo.callbacks import BestModel, EarlyStopping, History
from dlzoo.data.pipeline import batches
from dlzoo.report import lessons

options = course.options(data="fashion-mnist")
seeds, epochs = options.pick(range(3), range(2)), options.pick(40, 2)
data = options.load(val_split=0.1).some(train=500, val=500, test=2000)
train, val, test = (data.arrays(split, 28, channels=1) for split in ("train", "val", "test"))
print(data)

# %% [markdown]
# `fit` trains one net and returns its history and its probabilities on the test photos.


# %%
def fit(seed, *, augment=None, early=False, dropout=0.0, **penalty):
    keras.utils.set_random_seed(seed)
    net = course.compiled(dlzoo.create_model("mlp", num_classes=10, dropout=dropout, **penalty))
    history, best, steps = History(), BestModel(), -(-len(train[0]) // 32)
    callbacks = [history, EarlyStopping(patience=5), best] if early else [history]
    given = {"x": train[0], "y": train[1], "batch_size": 32}
    if augment:
        rule = net.dlzoo.preprocess
        seen = batches(data, "train", rule, batch=32, augment=augment, seed=seed, shuffle=True,
                       epochs=epochs)  # fmt: skip
        grey = seen.map(lambda image, *rest: (keras.ops.mean(image, -1, keepdims=True), *rest))
        given = {"x": grey, "steps_per_epoch": steps, "shuffle": False}
    net.fit(**given, validation_data=val, epochs=epochs, callbacks=callbacks, verbose=0)
    if early:
        best.restore()
    return history.rows, keras.ops.softmax(net(test[0])).numpy()


def right(probabilities):
    return float(np.mean(probabilities.argmax(axis=1) == test[1].argmax(axis=1)))


# %%
remedies = {
    "plain": {},
    "early stopping": {"early": True},
    "L1": {"l1": 3e-5},
    "L2": {"l2": 1e-3},
    "dropout": {"dropout": 0.5},
    "augmentation": {"augment": "light"},
}
found = {name: [fit(seed, **given) for seed in seeds] for name, given in remedies.items()}
accuracy = {name: [right(answer) for _, answer in runs] for name, runs in found.items()}

# %% [markdown]
# Model averaging costs no further training here: for each seed, the mean answer of the plain nets
# of all other seeds.

# %%
answers = np.array([answer for _, answer in found["plain"]])
accuracy[f"mean of {len(seeds) - 1} plain nets"] = [
    right(np.delete(answers, i, axis=0).mean(axis=0)) for i in range(len(seeds))
]
for name, values in accuracy.items():
    print(f"{name:22} {np.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})")

# %%
rows = [history for history, _ in found["plain"]]
losses = {f"{title}, plain": [[max(r[key], 1e-4) for r in run] for run in rows]
          for title, key in (("training", "loss"), ("validation", "val_loss"))}  # fmt: skip
lessons.lines(losses, options.out / "overfitting.png", x="epoch", y="loss", log=True)
x = f"test accuracy: each seed, mean and range, {data.name}"
lessons.spread(accuracy, options.out / "remedies.png", x=x)
options.show("overfitting.png")
options.show("remedies.png")
