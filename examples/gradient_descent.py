# %% [markdown]
# # Gradient descent: plain, momentum, Nesterov
# A net so small that its loss can be drawn: one weight and one bias, which tell a handwritten 3
# from an 8 by how much ink the left half of the image holds. More bias does nearly what more weight
# does, so the loss is a long, narrow valley, and the gradient points across it rather than along
# it. Momentum adds up what the gradients have in common and goes several times as far, swinging.
# Nesterov's takes the gradient ahead of the step, which damps the swinging.

# %%
import keras
import numpy as np
from dlzoo import course
from dlzoo.report import lessons

options = course.options(data="digits")
data = options.load()
images, labels = data.arrays("train", 28, channels=1)
digit = labels.argmax(axis=1)
chosen = (digit == 3) | (digit == 8)
ink = images[chosen, :, :14].mean(axis=(1, 2, 3))
x = (ink / ink.mean())[:, None]
y = (digit[chosen] == 8).astype("float32")[:, None]

# %% [markdown]
# The loss at every place of a grid of weights, by NumPy: the mean of log(1 + exp(-margin)).

# %%
ends = (-4, 14, -14, 4)
weight, bias = np.meshgrid(np.linspace(*ends[:2], 120), np.linspace(*ends[2:], 120))
margins = (weight[..., None] * x[:, 0] + bias[..., None]) * np.where(y[:, 0] > 0, 1, -1)
loss = np.logaddexp(0, -margins).mean(axis=-1)

# %% [markdown]
# Keras walks. All images are one batch, so an epoch is one step.

# %%
steps, walks = options.pick(100, 5), {}
for optimizer in ("sgd", "momentum", "nesterov"):
    net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    net.set_weights([np.array([[-3.0]]), np.array([-2.0])])
    course.compiled(net, optimizer, lr=2.0, task="binary")
    walk = [np.array([-3.0, -2.0])]
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs, net=net, walk=walk: walk.append(
            np.concatenate([np.ravel(w) for w in net.get_weights()])
        )
    )
    net.fit(x, y, batch_size=len(x), epochs=steps, callbacks=[note], verbose=0)
    walks[{"sgd": "plain"}.get(optimizer, optimizer)] = np.array(walk)
    print(f"{optimizer:9} {net.evaluate(x, y, verbose=0)[0]:.4f} after {steps} steps")
print(f"lowest    {loss.min():.4f} of the grid")

# %%
names = ("weight", "bias")
for name in ("descent.png", "descent.gif"):
    lessons.descent(loss, ends, walks, options.out / name, names)
    options.show(name)
