"""What PyTorch, and flashinfer if it is there, take for the products and the selection of the same shapes, on the same device: one line of JSON for each
shape. Ends with 77 where there is no PyTorch that sees a device."""

import json
import sys

SHAPES = [(768, 32768, 32), (768, 131072, 32), (2304, 16384, 64), (2304, 65536, 64), (4096, 131072, 64)]
TOKENS = [1, 16, 256, 8192]
SECONDS = 0.1


def say(**found):
    print(json.dumps({"part": "peers", **found}), flush=True)


try:
    import torch
except ImportError as error:
    say(status="no device", reason=str(error))
    sys.exit(77)
if not torch.cuda.is_available():
    say(status="no device", reason="this PyTorch sees no CUDA device")
    sys.exit(77)
try:
    import flashinfer
except ImportError:
    flashinfer = None
say(torch=torch.__version__, flashinfer=getattr(flashinfer, "__version__", None), device=torch.cuda.get_device_name())


def seconds(work):
    """What `work` takes on the device, once it is warm."""
    def timed(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    work()
    times = int(min(1000, max(1, SECONDS / max(timed(1), 1e-6))))
    timed(times // 4 + 1)
    return timed(times) / times


@torch.inference_mode()
def main():
    for d, n, k in SHAPES:
        weights = torch.randn(n, d, device="cuda", dtype=torch.bfloat16) / d**0.5
        bias = torch.zeros(n, device="cuda", dtype=torch.bfloat16)
        for tokens in TOKENS:
            x = torch.randn(tokens, d, device="cuda", dtype=torch.bfloat16)
            out = torch.empty(tokens, n, device="cuda", dtype=torch.bfloat16)
            found = {
                "mm": seconds(lambda: torch.mm(x, weights.T, out=out)),
                "linear_topk": seconds(lambda: torch.nn.functional.linear(x, weights, bias).topk(k, sorted=False)),
            }
            if flashinfer is not None and hasattr(flashinfer, "top_k"):
                found["mm_flashinfer"] = seconds(lambda: flashinfer.top_k(torch.mm(x, weights.T, out=out), k))
            say(d=d, n=n, k=k, tokens=tokens, **found)
            del x, out


main()
