"""PyTorch's cost of one case of `stormglass-train bench-lstm`, one thread, the same weights and input.

usage: lstm_torch.py CASE.safetensors window|training|step LAYERS SECONDS
Prints {"seconds": least time of a call, "difference": greatest difference of the hidden states}. Needs torch and numpy.
"""

import json
import math
import struct
import sys
import time

import numpy
import torch


def read(path):
    """The tensors of a safetensors file (all F32), by name."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        body = file.read()
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            values = numpy.frombuffer(body[begin:end], dtype="<f4").reshape(about["shape"])
            tensors[name] = torch.from_numpy(values.copy())
    return tensors


def least(call, budget):
    """The least processor time of one call; fast ones are measured several at once."""
    call()
    first = time.process_time()
    call()
    repetitions = max(1, math.ceil(2e-4 / max(time.process_time() - first, 1e-7)))
    least_seconds, measured, begin = float("inf"), 0, time.perf_counter()
    while measured < 3 or time.perf_counter() - begin < budget:
        call_begin = time.process_time()
        for _ in range(repetitions):
            call()
        least_seconds = min(least_seconds, (time.process_time() - call_begin) / repetitions)
        measured += 1
    return least_seconds


def main():
    path, kind, layers, budget = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(1)
    tensors = read(path)
    window, expected = tensors.pop("input"), tensors.pop("hidden")
    features, units = window.shape[2], expected.shape[2]
    lstm = torch.nn.LSTM(features, units, layers, batch_first=True)
    lstm.load_state_dict(tensors)
    with torch.inference_mode():
        difference = (lstm(window)[0] - expected).abs().max().item()

    if kind == "training":
        head = torch.nn.Linear(units, features)
        wanted = torch.rand(window.shape[0], features)
        optimiser = torch.optim.AdamW([*lstm.parameters(), *head.parameters()], lr=1e-3)

        def call():
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(head(lstm(window)[0][:, -1]), wanted).backward()
            optimiser.step()

    elif kind == "step":
        lstm.eval()
        state = [torch.zeros(layers, 1, units), torch.zeros(layers, 1, units)]

        def call():
            with torch.inference_mode():
                _, (state[0], state[1]) = lstm(window, (state[0], state[1]))

    else:
        lstm.eval()

        def call():
            with torch.inference_mode():
                lstm(window)

    print(json.dumps({"seconds": least(call, budget), "difference": difference}))


main()
