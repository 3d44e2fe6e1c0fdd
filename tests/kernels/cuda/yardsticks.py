# tests/kernels/cuda/yardsticks.py - the libraries that our kernels are measured against, on the machine at hand:
# cuBLASLt's block-scaled FP8 products and cuDNN's attention through PyTorch, in CUDA graphs over rotating inputs.
"""Usage: yardsticks.py.  Prints one line per shape: time, TFLOPS, ratio to facts measured on an H100 before."""
import statistics

import torch

# M, N, K, TFLOPS of cuBLASLt's 1x128 by 128x128 scaling measured on an H100 on 2026-11-21.
PRODUCTS = [(64, 2112, 7168, 89), (64, 24576, 1536, 258), (128, 7168, 16384, 596), (4096, 4096, 7168, 1144), (4096, 7168, 16384, 1146)]
ATTENTION_US = 4546  # cuDNN, 4 x 4096 tokens, 128 heads, 192/128, causal


def median_us(call, variants):
    """Median of replays of a graph of one call per variant."""
    for variant in range(variants):
        call(variant)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for variant in range(variants):
            call(variant)
    samples = []
    for _ in range(12):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) * 1e3 / variants)
    return statistics.median(samples[2:])


def quantised(rows, cols):
    return torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)


def product(m, n, k, known):
    from torch.nn.functional import ScalingType, SwizzleType, scaled_mm
    variants = max(2, min(16, int(200e6 / (n * k))))
    x = [quantised(m, k) for _ in range(variants)]
    w = [quantised(n, k) for _ in range(variants)]
    x_scales = torch.rand(k // 128, m, device="cuda").t()
    w_scales = torch.rand((n + 127) // 128, (k // 128 + 3) // 4 * 4, device="cuda")[:, :k // 128]

    def call(i):
        return scaled_mm(x[i], w[i].t(), x_scales, ScalingType.BlockWise1x128, w_scales.t(), ScalingType.BlockWise128x128,
                         swizzle_a=SwizzleType.NO_SWIZZLE, swizzle_b=SwizzleType.NO_SWIZZLE, output_dtype=torch.bfloat16)

    us = median_us(call, variants)
    tflops = 2 * m * n * k / us * 1e-6
    print(f"cuBLASLt {m}x{n}x{k}: {us:.1f} us, {tflops:.0f} TFLOPS; known {known}: x{tflops / known:.3f}")


def attention():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    q, k = (torch.randn(4, 128, 4096, 192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    v = torch.randn(4, 128, 4096, 128, device="cuda", dtype=torch.bfloat16)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        us = median_us(lambda i: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), 1)
    flops = 2 * 128 * 320 * 4 * 4096 * 4097 / 2
    print(f"cuDNN attention: {us:.0f} us, {flops / us * 1e-6:.0f} TFLOPS; known {ATTENTION_US} us: x{ATTENTION_US / us:.3f}")


def main():
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    for shape in PRODUCTS:
        try:
            product(*shape)
        except (ImportError, RuntimeError, ValueError, AttributeError) as error:
            print(f"cuBLASLt {shape[:3]}: not run: {str(error)[:300]}")
    attention()


if __name__ == "__main__":
    main()
