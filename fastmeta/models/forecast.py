"""Forecasters: windows [N, window, features] → the next steps [N, horizon, features]."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def forecast_mlp(window: int, horizon: int, features: int, *, width: int = 64) -> nn.Sequential:
    """Two hidden layers of tanh units on the whole window."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(window * features, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, horizon * features),
        nn.Unflatten(1, (horizon, features)),
    )


class ForecastLSTM(nn.Module):
    """An LSTM cell (Hochreiter and Schmidhuber 1997) unrolled over the window, and a linear layer on its last state."""

    def __init__(self, window: int, horizon: int, features: int, *, width: int = 64) -> None:
        super().__init__()
        self.window, self.horizon, self.features = window, horizon, features
        self.cell = nn.LSTMCell(features, width)
        self.start = nn.Parameter(torch.zeros(2, width))
        self.head = nn.Linear(width, horizon * features)

    def forward(self, x: Tensor) -> Tensor:
        blank = x[:, 0, :1] * 0.0  # [N, 1], to give every sample the same first state
        state = (blank + self.start[0], blank + self.start[1])
        for step in range(self.window):
            state = self.cell(x[:, step], state)
        return self.head(state[0]).reshape(-1, self.horizon, self.features)
