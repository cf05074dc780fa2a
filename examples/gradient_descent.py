# %% [markdown]
# # Gradient descent: plain, momentum, Nesterov
# A net so small that its loss can be drawn: two weights, which tell a handwritten 3 from an 8 by how
# much ink the left and the right half of the image hold. The two go together (a bold digit has more
# of both), so the loss is a long, narrow valley. The gradient points across the valley rather than
# along it. Momentum adds up what the gradients have in common.

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
ink = images[chosen, :, :, 0]
x = np.stack([ink[:, :, :14].mean(axis=(1, 2)), ink[:, :, 14:].mean(axis=(1, 2))], axis=1)
x = (x - x.mean(axis=0)) / x.std(axis=0)
y = (digit[chosen] == 8).astype("float32")[:, None]

# %% [markdown]
# The loss at every place of a grid of weights, by NumPy: the mean of log(1 + exp(-margin)).

# %%
ends = (-3.2, 4.8, -5.2, 2.8)
grid = np.stack(np.meshgrid(np.linspace(*ends[:2], 120), np.linspace(*ends[2:], 120)), axis=-1)
margins = (grid @ x.T) * np.where(y[:, 0] > 0, 1, -1)
loss = np.logaddexp(0, -margins).mean(axis=-1)

# %% [markdown]
# Keras walks: all images are one batch, so an epoch is one step.

# %%
start, steps = np.array([[-2.5], [-4.0]]), options.pick(100, 5)
walks = {}
for optimizer in ("sgd", "momentum", "nesterov"):
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    net.set_weights([start])
    course.compiled(net, optimizer, lr=1.0, task="binary")
    walk = [start[:, 0]]
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs, net=net, walk=walk: walk.append(
            net.get_weights()[0][:, 0]
        )
    )
    net.fit(x, y, batch_size=len(x), epochs=steps, callbacks=[note], verbose=0)
    walks[{"sgd": "plain"}.get(optimizer, optimizer)] = np.array(walk)
    print(f"{optimizer:9} {net.evaluate(x, y, verbose=0)[0]:.4f} after {steps} steps")
print(f"lowest    {loss.min():.4f}")

# %%
names = ("weight of the left half", "weight of the right half")
for name in ("descent.png", "descent.gif"):
    lessons.descent(loss, ends, walks, options.out / name, names)
    options.show(name)
