"""Small networks of many shapes, none of them ours: what users bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import nn


@dataclass(frozen=True)
class Case:
    """A network, and the shapes of its inputs with None for the batch."""

    build: Callable[[], nn.Layer]
    shapes: tuple[tuple, ...] = ((None, 3, 16, 16),)


def conv_norm(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Sequential:
    options.setdefault("padding", kernel // 2)
    conv = nn.Conv2D(inputs, outputs, kernel, bias_attr=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2D(outputs))


class ChannelsLast(nn.Layer):
    def __init__(self):
        super().__init__()
        options = {"padding": 1, "data_format": "NHWC"}
        self.conv1 = nn.Conv2D(3, 8, 3, bias_attr=False, **options)
        self.norm = nn.BatchNorm2D(8, data_format="NHWC")
        self.depthwise = nn.Conv2D(8, 8, 3, stride=2, groups=8, **options)
        self.conv2 = nn.Conv2D(8, 8, 3, **options)
        self.pool = nn.AvgPool2D(2, data_format="NHWC")
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x):
        x = F.relu(self.depthwise(F.relu(self.norm(self.conv1(x)))))
        return self.fc(self.pool(x + self.conv2(x)).flatten(1))


class SharedLayers(nn.Layer):
    """One convolution runs twice, each time with a BatchNorm of its own, and one Linear twice."""

    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.conv = nn.Conv2D(8, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2D(8)
        self.norm2 = nn.BatchNorm2D(8)
        self.fc = nn.Linear(8, 8)
        self.again = nn.LayerList([self.conv])

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.norm1(self.conv(x)))
        x = F.relu(self.norm2(self.again[0](x)))
        x = x.mean(axis=[2, 3])
        return self.fc(F.relu(self.fc(x)))


class TiedWeights(nn.Layer):
    """Two layers own the same parameter."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 12)
        self.fc2 = nn.Linear(12, 12)
        self.fc2.weight = self.fc1.weight

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


class SqueezeExcite(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 16)
        self.down = nn.Conv2D(16, 4, 1)
        self.up = nn.Conv2D(4, 16, 1)
        self.last = conv_norm(16, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        gate = F.adaptive_avg_pool2d(x, 1)
        x = x * F.hardsigmoid(self.up(F.relu(self.down(gate))), slope=0.2, offset=0.5)
        x = F.hardswish(self.last(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Paddings(nn.Layer):
    """Dilation, groups and each way to write a padding."""

    def __init__(self):
        super().__init__()
        self.convs = nn.LayerList(
            [
                nn.Conv2D(3, 8, 3, padding="SAME", dilation=2),
                nn.Conv2D(8, 8, 3, padding=2, dilation=2, groups=4),
                nn.Conv2D(8, 8, 3, padding=[1, 2], groups=8),
                nn.Conv2D(8, 8, 3, padding=[1, 0, 2, 1], stride=(2, 1)),
                nn.Conv2D(8, 8, (1, 3), padding="VALID"),
                nn.Conv2D(8, 16, 3, padding=1, groups=8, stride=2),
                nn.Conv2D(16, 4, 3, padding="SAME", stride=2),
            ]
        )

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.mean(axis=[2, 3])


class PaddingModes(nn.Layer):
    def __init__(self):
        super().__init__()
        self.reflect = nn.Conv2D(3, 8, 3, padding=1, padding_mode="reflect")
        self.replicate = nn.Conv2D(8, 8, 3, padding=1, padding_mode="replicate")
        self.circular = nn.Conv2D(8, 8, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm2D(8)

    def forward(self, x):
        x = F.relu(self.reflect(x))
        x = F.relu(self.replicate(x))
        return self.norm(self.circular(x)).mean(axis=[2, 3])


class DenseConcat(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.conv1 = conv_norm(8, 4)
        self.conv2 = conv_norm(12, 4)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = paddle.concat([x, F.relu(self.conv1(x))], axis=1)
        x = paddle.concat([x, F.relu(self.conv2(x))], axis=1)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Functional(nn.Layer):
    """A convolution that is a function and its own parameter is no layer, so it stays float."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 8, 3)
        self.kernel = self.create_parameter([8, 8, 3, 3])
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.relu6(F.conv2d(x, self.kernel, padding=1))
        return self.fc(paddle.max(x, axis=[2, 3]))


class TensorCondition(nn.Layer):
    """Which branch runs depends on the values: the mean of the batch, 0.30 in the tests."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 8, 3, stride=2)
        self.left = nn.Linear(8, 5)
        self.right = nn.Linear(8, 5)

    def forward(self, x):
        bright = x.mean() > 0.307
        x = F.relu(self.stem(x)).mean(axis=[2, 3])
        if bright:
            y = self.left(x)
        else:
            y = self.right(x) * 2.0
        return y


class FlagCondition(nn.Layer):
    def __init__(self, deep: bool = True):
        super().__init__()
        self.deep = deep
        self.conv1 = nn.Conv2D(3, 8, 3)
        self.conv2 = nn.Conv2D(8, 8, 3)
        self.unused = nn.Conv2D(8, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        if self.deep:
            x = F.relu(self.conv2(x))
        if self.training:
            x = x + 0.0
        if not self.deep:
            x = self.unused(x)
        return self.fc(x.mean(axis=[2, 3]))


class TwoInputs(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = conv_norm(3, 8)
        self.embed = nn.Linear(6, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, image, extra):
        x = F.relu(self.conv(image)).mean(axis=[2, 3])
        return self.fc(F.relu(x + self.embed(extra)))


class TupleOutput(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.head = nn.Conv2D(8, 4, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.fc(x.mean(axis=[2, 3])), [self.head(x), x]


class DictOutput(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.main = nn.Linear(8, 5)
        self.auxiliary = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x)).mean(axis=[2, 3])
        return {"main": self.main(x), "auxiliary": self.auxiliary(x)}


class Activations(nn.Layer):
    def __init__(self):
        super().__init__()
        self.convs = nn.LayerList([nn.Conv2D(3 if i == 0 else 8, 8, 3) for i in range(6)])
        self.acts = [F.swish, F.gelu, F.sigmoid, F.tanh, F.leaky_relu, F.mish]

    def forward(self, x):
        for conv, act in zip(self.convs, self.acts):
            x = act(conv(x))
        return x.mean(axis=[2, 3])


class AvgPoolReshape(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.pool = nn.AvgPool2D(3, stride=2, padding=1)
        self.conv = conv_norm(8, 8)
        self.fc = nn.Linear(8 * 8 * 8, 5)

    def forward(self, x):
        x = F.relu(self.conv(self.pool(F.relu(self.stem(x)))))
        return self.fc(paddle.reshape(x, [-1, 8 * 8 * 8]))


class SplitShuffle(nn.Layer):
    """A unit of ShuffleNetV2."""

    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 16)
        self.branch = nn.Sequential(
            conv_norm(8, 8, 1), nn.ReLU(), conv_norm(8, 8, 3, groups=8), conv_norm(8, 8, 1)
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for _ in range(2):
            kept, changed = paddle.split(x, 2, axis=1)
            x = paddle.concat([kept, F.relu(self.branch(changed))], axis=1)
            n, c, h, w = x.shape
            x = x.reshape([-1, 2, c // 2, h, w]).transpose([0, 2, 1, 3, 4]).reshape([-1, c, h, w])
        return self.fc(x.mean(axis=[2, 3]))


class Mixer(nn.Layer):
    """Patches as tokens; one Linear mixes over tokens, one over channels."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2D(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.tokens = nn.Linear(16, 16)
        self.channels = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose([0, 2, 1])
        x = x + self.tokens(self.norm(x).transpose([0, 2, 1])).transpose([0, 2, 1])
        x = x + F.gelu(self.channels(self.norm(x)))
        return self.fc(x.mean(axis=1))


class Attention(nn.Layer):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.out = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        tokens = x.shape[1]
        qkv = self.qkv(self.norm(x)).reshape([-1, tokens, 3, 2, 6]).transpose([2, 0, 3, 1, 4])
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = F.softmax(paddle.matmul(q * 6**-0.5, k, transpose_y=True), axis=-1)
        heads = paddle.matmul(weights, v).transpose([0, 2, 1, 3]).reshape([-1, tokens, 12])
        return self.fc((x + self.out(heads)).mean(axis=1))


class Dropouts(nn.Layer):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(3, 8),
            nn.ReLU(),
            nn.Dropout2D(0.3),
            nn.Flatten(),
            nn.Linear(8 * 16 * 16, 8),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        return self.body(x)


class Plain(nn.Layer):
    """Neither bias nor BatchNorm nor activation between layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2D(3, 8, 3, bias_attr=False)
        self.conv2 = nn.Conv2D(8, 8, 3, bias_attr=False)
        self.fc = nn.Linear(8, 5, bias_attr=False)

    def forward(self, x):
        return self.fc(self.conv2(self.conv1(x)).mean(axis=[2, 3]))


class SomeSkipped(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 8, 3)
        self.stem.skip_quant = True
        self.conv = conv_norm(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.fc(F.relu(self.conv(x)).mean(axis=[2, 3]))


class FloatRelatives(nn.Layer):
    """Conv1D, Conv2DTranspose and GroupNorm have no int8 form here and stay float."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.transposed = nn.Conv2DTranspose(8, 8, 2, stride=2)
        self.conv1d = nn.Conv1D(8, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.transposed(F.relu(self.norm(self.conv(x)))))
        return self.fc(F.relu(self.conv1d(x.flatten(2))).mean(axis=2))


class Residuals(nn.Layer):
    """The first sum is read three times; a convolution's output is read besides its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.conv1 = conv_norm(8, 8)
        self.conv2 = nn.Conv2D(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2D(8)
        self.shortcut = conv_norm(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.conv1(x))
        y = self.conv2(x)
        x = F.relu(self.norm2(y) + self.shortcut(x) + x + 0.1 * y)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActivation(nn.Layer):
    """BatchNorm comes before the convolution, so there is nothing to fold it into."""

    def __init__(self):
        super().__init__()
        self.norm0 = nn.BatchNorm2D(3)
        self.conv1 = nn.Conv2D(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2D(8)
        self.conv2 = nn.Conv2D(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv1(F.relu(self.norm0(x)))
        x = x + self.conv2(F.relu(self.norm1(x)))
        return self.fc(x.mean(axis=[2, 3]))


class Upsampling(nn.Layer):
    def __init__(self):
        super().__init__()
        self.down = conv_norm(3, 8, stride=2)
        self.middle = conv_norm(8, 8, stride=2)
        self.lateral = nn.Conv2D(8, 8, 1)
        self.head = nn.Conv2D(8, 2, 1)

    def forward(self, x):
        fine = F.relu(self.down(x))
        coarse = F.relu(self.middle(fine))
        x = self.lateral(fine) + F.interpolate(coarse, scale_factor=2, mode="nearest")
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(x)


class LinearNorms(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 16, bias_attr=False)
        self.norm1 = nn.BatchNorm1D(16)
        self.fc2 = nn.Linear(16, 16)
        self.norm2 = nn.BatchNorm1D(16)
        self.fc3 = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.fc1(x)))
        return self.fc3(F.relu(self.norm2(self.fc2(x))))


class Slices(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.conv = nn.Conv2D(4, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.conv(x[:, 2:6, 1:-1, ::2])
        return self.fc(x[:, :, 0, 0])


class Inception(nn.Layer):
    """Max and average pooling beside convolutions, all of one tensor, in LayerDict order."""

    def __init__(self):
        super().__init__()
        self.branches = nn.LayerDict(
            {
                "one": conv_norm(3, 4, 1),
                "three": conv_norm(3, 4, 3),
                "average": nn.Sequential(nn.AvgPool2D(3, 1, 1), conv_norm(3, 4, 1)),
                "largest": nn.Sequential(nn.MaxPool2D(3, 1, 1), conv_norm(3, 4, 1)),
            }
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = paddle.concat([F.relu(branch(x)) for branch in self.branches.values()], axis=1)
        return self.fc(x.mean(axis=[2, 3]))


class Words(nn.Layer):
    """Integer input: an Embedding, and Linear layers that read its rows."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.hidden = nn.Linear(12, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, ids):
        return self.fc(F.tanh(self.hidden(self.table(ids))).mean(axis=1))


def one_channel() -> nn.Layer:
    return nn.Sequential(
        nn.Conv2D(1, 1, 3), nn.BatchNorm2D(1), nn.Conv2D(1, 1, 1), nn.Flatten(), nn.Linear(196, 5)
    )


IMAGE = (None, 3, 16, 16)
CASES = {
    "activations": Case(Activations),
    "attention": Case(Attention, ((None, 7, 12),)),
    "avg_pool_reshape": Case(AvgPoolReshape),
    "batch_of_one": Case(SqueezeExcite, ((1, 3, 16, 16),)),
    "channels_last": Case(ChannelsLast, ((None, 16, 16, 3),)),
    "dense_concat": Case(DenseConcat),
    "dict_output": Case(DictOutput),
    "dropouts": Case(Dropouts),
    "flag_condition": Case(FlagCondition),
    "float_relatives": Case(FloatRelatives),
    "functional": Case(Functional),
    "inception": Case(Inception),
    "linear_norms": Case(LinearNorms, ((None, 12),)),
    "mixer": Case(Mixer),
    "one_channel": Case(one_channel, ((None, 1, 16, 16),)),
    "open_image_size": Case(SqueezeExcite, ((None, 3, None, None),)),
    "padding_modes": Case(PaddingModes),
    "paddings": Case(Paddings),
    "plain": Case(Plain),
    "pre_activation": Case(PreActivation),
    "residuals": Case(Residuals),
    "root_is_conv": Case(lambda: nn.Conv2D(3, 8, 3), (IMAGE,)),
    "shared_layers": Case(SharedLayers),
    "slices": Case(Slices),
    "some_skipped": Case(SomeSkipped),
    "split_shuffle": Case(SplitShuffle),
    "squeeze_excite": Case(SqueezeExcite),
    "tensor_condition": Case(TensorCondition),
    "tied_weights": Case(TiedWeights, ((None, 12),)),
    "tuple_output": Case(TupleOutput),
    "two_inputs": Case(TwoInputs, (IMAGE, (None, 6))),
    "upsampling": Case(Upsampling),
    "words": Case(Words, ((None, 6),)),
}
