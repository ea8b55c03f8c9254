"""The authors' formulation of what is measured, written plainly: the form that ours is compared with.

Facts from their paper and from how their programs behave; no code of theirs. A target that is computed whole, its head
included, and moved parameter by parameter; features of a network that nothing freezes; concatenated skip connections;
one image at a time; a full sort; Python loops.
"""

import copy

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2 import functional

from darkening.views import Darkening
from minmax.features import independent_copy


def darken(darkener, images, exposure):
    """The curve for each pixel, with concatenations and a curve that allocates in every round."""
    units = darkener.estimator.units

    def unit(i, *parts):
        return units[i].pointwise(units[i].depthwise(torch.cat(parts, dim=1)))

    exposure = torch.as_tensor(exposure).to(images).expand(len(images), 1, *images.shape[2:])
    z = F.relu(unit(0, images, exposure))
    a1 = F.relu(unit(1, z))
    a2 = F.relu(unit(2, a1))
    a3 = F.relu(unit(3, a2))
    a4 = F.relu(unit(4, a3))
    a5 = F.relu(unit(5, a3, a4))
    a6 = F.relu(unit(6, a2, a5))
    raw = unit(7, a1, a6)
    curve_map = torch.tanh(raw[:, :3])
    scale_map = torch.sigmoid(raw[:, 3:]) * 0.05 + 0.95
    value = images * scale_map
    for _ in range(8):
        value = value + curve_map * (value * value - value)
    return Darkening(value / scale_map, curve_map, scale_map)


class Adaptation(nn.Module):
    """A step of adaptation from the weights of a `MomentumPair`.

    Args:
        pair: is copied.
        see: (network, images) to prediction and features.
        loss: (prediction, labels) to a scalar.
        weight: of the mean distance.
        in_turn: backward after each of the two forward passes, as in segmentation, not after both.
    """

    def __init__(self, pair, see, loss, weight, in_turn):
        super().__init__()
        network = independent_copy(pair.online)
        self.normalization = network.normalization
        self.query = nn.ModuleList([network.release(), *copy.deepcopy(pair.projectors)])
        self.key = copy.deepcopy(self.query)
        self.predictors = copy.deepcopy(pair.predictors)
        self.see, self.loss, self.weight = see, loss, weight
        self.in_turn, self.momentum = in_turn, pair.momentum

    def project(self, branch, images):
        """Prediction and projections of a network and its heads."""
        network, *projectors = branch
        prediction, features = self.see(network, images)
        return prediction, [project(feature) for project, feature in zip(projectors, features, strict=True)]

    def step(self, optimizer, day, night, labels):
        """The loss of a batch, and all that follows from it."""
        optimizer.zero_grad()
        day, night = self.normalization(day), self.normalization(night)
        total = 0.0
        for view, other in ((day, night), (night, day)):
            prediction, queries = self.project(self.query, view)
            with torch.no_grad():
                _, keys = self.project(self.key, other)
            loss = self.loss(prediction, labels)
            for predict, query, key in zip(self.predictors, queries, keys, strict=True):
                cosine = (F.normalize(predict(query), dim=1) * F.normalize(key, dim=1)).sum(dim=1).mean()
                loss = loss + 0.5 * self.weight / len(keys) * (2.0 - 2.0 * cosine)
            if self.in_turn:
                loss.backward()
                loss = loss.detach()
            total = total + loss
        if not self.in_turn:
            total.backward()
        optimizer.step()
        for moved, towards in zip(self.key.parameters(), self.query.parameters(), strict=True):
            moved.data = moved.data * self.momentum + towards.data * (1.0 - self.momentum)
        return total.detach()


def plain_optimizer(ours, module):
    """An optimiser of the kind and settings of ours that goes from parameter to parameter."""
    return type(ours)(module.parameters(), **(ours.defaults | {"foreach": False, "fused": False}))


def tuple_step(network, optimizer, tuples, margin):
    """Retrieval: every image of a tuple by itself, backward after each tuple, a step after all.

    A tuple is (query, darkened query, positive, negatives...), images `(3, H, W)`.
    """
    optimizer.zero_grad()
    total = 0.0
    for images in tuples:
        query, *others = [network(image[None]) for image in images]
        loss = 0.0
        for number, other in enumerate(others):
            distance = (query - other + 1e-6).norm()
            loss = loss + 0.5 * (distance if number < 2 else (margin - distance).clamp(min=0)) ** 2
        loss.backward()
        total = total + loss.detach()
    optimizer.step()
    return total


@torch.no_grad()
def describe(network, images, size):
    """Every image through the network by itself."""
    network.eval()
    found = []
    for i in range(len(images)):
        image = functional.to_dtype(images.load(i, size), torch.float32, scale=True)
        found.append(network(image[None]))
    return torch.cat(found)


def mine(queries, pool, query_places, pool_places, count):
    """Sort all similarities, then go down each list."""
    order = (pool @ queries.T).sort(dim=0, descending=True).indices
    found = []
    for query in range(len(queries)):
        seen, chosen, rank = {int(query_places[query])}, [], 0
        while len(chosen) < count:
            position = int(order[rank, query])
            rank += 1
            if int(pool_places[position]) not in seen:
                seen.add(int(pool_places[position]))
                chosen.append(position)
        found.append(chosen)
    return torch.tensor(found)


def count_confusion(predictions, labels, classes=20):
    """The confusion matrix, image by image: `numpy.unique` over pairs, then a loop over those there are."""
    confusion = np.zeros((classes, classes), np.int64)
    for prediction, label in zip(predictions.numpy(), labels.numpy(), strict=True):
        pairs = label.astype(np.int64) * classes + prediction
        for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
            confusion[pair // classes, pair % classes] += count
    return torch.from_numpy(confusion)


@torch.no_grad()
def darken_video(source, target, darkener, exposure, count, crf):
    """The first frames of a video, one by one."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        original = container.streams.video[0]
        options = {"crf": str(crf), "preset": "veryfast", "bf": "0"}
        stream = out.add_stream("libx264", rate=original.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = original.width, original.height, "yuv420p"
        for _, frame in zip(range(count), container.decode(original), strict=False):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()[None] / 255.0
            night = (darken(darkener, pixels, exposure).image.clamp(0, 1) * 255).round().to(torch.uint8)
            written = av.VideoFrame.from_ndarray(night[0].permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            written.pts, written.time_base = frame.pts, frame.time_base
            out.mux(stream.encode(written))
        out.mux(stream.encode(None))
