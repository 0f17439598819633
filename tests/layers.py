"""Layers of every type with inputs for them, drawn by hypothesis."""

import torch
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

sizes = st.integers(1, 5)


@st.composite
def linears(draw):
    d_in, d_out = draw(sizes), draw(sizes)
    layer = nn.Linear(d_in, d_out, bias=draw(st.booleans())) if draw(st.booleans()) else Conv1D(d_out, d_in)
    return layer, torch.randn(*draw(st.sampled_from([(), (3,), (2, 3)])), d_in)


@st.composite
def embeddings(draw):
    n, width = draw(sizes), draw(sizes)
    padding_idx = draw(st.one_of(st.none(), st.integers(-n, n - 1)))
    layer = nn.Embedding(n, width, padding_idx)
    nn.init.normal_(layer.weight)
    return layer, torch.randint(n, draw(st.sampled_from([(), (4,), (2, 3)])))


def _input(draw, n_dims, channels, size):
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    return torch.randn(*batch, channels, *[size] * n_dims)


@st.composite
def convolutions(draw):
    n_dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * n_dims))
    padding = draw(st.sampled_from([0, 1, 2, "valid", *(["same"] if stride == 1 else [])]))
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n_dims - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    return layer, _input(draw, n_dims, layer.in_channels, draw(st.integers(5, 6)))


@st.composite
def transposed_convolutions(draw):
    n_dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n_dims - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        draw(st.tuples(*[st.integers(2, 3)] * n_dims)),
        stride=stride,
        padding=draw(st.integers(0, 1)),
        output_padding=draw(st.integers(0, max(stride, dilation) - 1)),
        groups=groups,
        bias=draw(st.booleans()),
        dilation=dilation,
    )
    return layer, _input(draw, n_dims, layer.in_channels, draw(st.integers(3, 4)))


any_layer = st.one_of(linears(), embeddings(), convolutions(), transposed_convolutions())
