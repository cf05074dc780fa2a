# %% [markdown]
# # Why deep nets of sigmoids do not train
# Going back through a layer, the gradient is multiplied by its weights and by the slope of its
# activation. The slope of a sigmoid is at most 1/4, so after twelve layers little is left, and the
# first layers learn nothing. `GradientWatch` notes the norm of each layer's gradient while Keras
# trains. Two cures: ReLU, whose slope is 1 wherever it is active, and residual links, by which the
# gradient goes round each layer.

# %%
import keras
from dlzoo import course
from dlzoo.callbacks import GradientWatch
from dlzoo.report import lessons

options = course.options(data="digits")
data = options.load()
images, labels = data.arrays("train", 28, channels=1)
val = data.arrays("val", 28, channels=1)


def net(depth: int, activation: str, residual: bool = False) -> keras.Model:
    """Return a dense net of equal layers; residual: each adds to what it is given."""
    layers = keras.layers
    start = "he_normal" if activation == "relu" else "glorot_uniform"
    image = keras.Input((28, 28, 1))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(image))
    x = layers.Dense(64, name="layer_0")(x)
    for i in range(1, depth + 1):
        y = layers.Dense(64, activation, kernel_initializer=start, name=f"layer_{i}")(x)
        x = layers.Add()([x, y]) if residual else y
    return keras.Model(image, layers.Dense(len(data.classes), name="logits")(x))


# %%
watched, accuracy = {}, {}
for title, arguments in {
    "2 layers of sigmoids": (2, "sigmoid"),
    "12 layers of sigmoids": (12, "sigmoid"),
    "12 layers of ReLU": (12, "relu"),
    "12 sigmoids, residual links": (12, "sigmoid", True),
}.items():
    keras.utils.set_random_seed(0)
    model, watch = course.compiled(net(*arguments), "sgd", lr=0.05), GradientWatch(every=5)
    epochs = options.pick(10, 1)
    history = model.fit(
        images, labels, validation_data=val, epochs=epochs, callbacks=[watch], verbose=0
    ).history
    watched[f"{title}: {history['val_acc'][-1]:.0%} right"] = watch.rows
    first, last = (watch.rows[0][name] for name in ("layer_1", "logits"))
    print(f"{title}: {history['val_acc'][-1]:.1%} right after {epochs} epochs; at the start the "
          f"gradient of layer 1 is {first / last:.0e} of that of the last layer")  # fmt: skip

# %%
lessons.gradients(watched, options.out / "gradients.png")
options.show("gradients.png")
