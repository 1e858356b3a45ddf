"""The authors' 3D model as their weights' names and shapes describe it, written anew to compare features with."""

import argparse
from pathlib import Path

import torch
from torch import nn


class Lu(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(c_in, c_out, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(c_out)

    def forward(self, x):
        return torch.relu(self.bn1(self.conv1(x)))


class Down(nn.Module):
    def __init__(self, c_in: int, middle: int, c_out: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(Lu(c_in, middle), Lu(middle, c_out))

    def forward(self, x):
        return self.ops(x)


class Head(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(c, 1, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(1)


class Up(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(c_in, c_in, 2, 2)
        self.ops = nn.Sequential(Lu(c_in, c_out), Lu(c_out, c_out))
        self.bn = nn.BatchNorm3d(c_out)
        self.predictor_head = nn.Sequential(
            nn.Linear(c_out, 2 * c_out), nn.BatchNorm1d(2 * c_out), nn.ReLU(), nn.Linear(2 * c_out, c_out)
        )
        self.deep_supervision_head = Head(c_out)


class Out(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.final_conv = nn.Conv3d(c, 1, 1)


class Original(nn.Module):
    """w = 32 in the released file."""

    def __init__(self, w: int = 32, channels: int = 1) -> None:
        super().__init__()
        self.down_tr64 = Down(channels, w, 2 * w)
        self.down_tr128 = Down(2 * w, 2 * w, 4 * w)
        self.down_tr256 = Down(4 * w, 4 * w, 8 * w)
        self.down_tr512 = Down(8 * w, 8 * w, 16 * w)
        self.up_tr256, self.up_tr128, self.up_tr64 = Up(16 * w, 8 * w), Up(8 * w, 4 * w), Up(4 * w, 2 * w)
        self.out_tr = Out(2 * w)

    def forward(self, x):
        maps = []
        for down in (self.down_tr64, self.down_tr128, self.down_tr256, self.down_tr512):
            x = down(x if not maps else nn.functional.max_pool3d(x, 2))
            maps.append(x)
        return maps


def random_model(w: int = 4, seed: int = 0) -> Original:
    """With running statistics that are not those of the start."""
    torch.manual_seed(seed)
    model = Original(w)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d | nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
            module.num_batches_tracked.fill_(7)
    return model.eval()


def save(path: Path, state: dict, legacy: bool = False, **more) -> Path:
    """As the authors' code saves it: options, weights, optimiser, epoch."""
    content = {
        "opt": argparse.Namespace(lr=1e-3, n="luna", gpus="0,1,2,3", epochs=240, nothing=None),
        "state_dict": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "epoch": 240,
    }
    torch.save(content | more, path, _use_new_zipfile_serialization=not legacy)
    return path
