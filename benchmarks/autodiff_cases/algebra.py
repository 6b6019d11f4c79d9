"""Products, distances, attention, linear algebra, Fourier transforms and complex numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, linalg, nn

from autodiff_cases.case import BAND, fixed, functions, regular, spd

PRODUCTS = functions(
    (3, 4),
    {
        "matmul": lambda h: h @ fixed(4, 2),
        "matmul of two": lambda h: h @ h.mT,
        "bmm": lambda h: torch.bmm(h, h.sin().mT),
        "baddbmm": lambda h: torch.baddbmm(h[:, :, :3], h, h.mT, beta=0.5, alpha=2),
        "mv": lambda h: torch.stack([torch.mv(one, one[0]) for one in h]),
        "einsum": lambda h: torch.einsum("nij,nkj,kl->nil", h, h, fixed(3, 2)),
        "tensordot": lambda h: torch.tensordot(h, fixed(3, 4, 2), dims=([1, 2], [0, 1])),
        "outer": lambda h: torch.stack([torch.outer(one[0], one[1]) for one in h]),
        "kron": lambda h: torch.stack([torch.kron(one, fixed(2, 2)) for one in h]),
        "vecdot": lambda h: linalg.vecdot(h, h.flip(1)),
        "multi_dot": lambda h: torch.stack([linalg.multi_dot([one, one.T, one]) for one in h]),
        "cross": lambda h: linalg.cross(h, h.flip(-1).sin(), dim=1),
        "addcmul": lambda h: torch.addcmul(h, h.sin(), h.flip(-1), value=0.5),
        "addcdiv": lambda h: torch.addcdiv(h, h.sin(), h.flip(-1) ** 2 + 1, value=0.5),
        "lerp": lambda h: torch.lerp(h, h.flip(-1), 0.3),
        "lerp, tensor": lambda h: torch.lerp(h, h.flip(-1), h.sigmoid()),
        "cosine_similarity": lambda h: F.cosine_similarity(h, h.flip(-1).sin(), dim=-1),
        "pairwise_distance": lambda h: F.pairwise_distance(h[:, 0], h[:, 1]),
        "cdist": lambda h: torch.cdist(h[:, :2], h[:, 1:].sin() + 3),
        "cdist, p = 1": lambda h: torch.cdist(h[:, :2], h[:, 1:].sin() + 3, p=1),
        "cdist, p = 3": lambda h: torch.cdist(h[:, :2], h[:, 1:].sin() + 3, p=3),
        "cdist, by matmul": lambda h: torch.cdist(h[:, :2], h[:, 1:].sin() + 3, compute_mode="use_mm_for_euclid_dist"),
        "pdist": lambda h: torch.stack([F.pdist(one) for one in h]),
        "bilinear": lambda h: F.bilinear(h[:, 0], h[:, 1], fixed(2, 4, 4)),
        "vander": lambda h: linalg.vander(h[:, 0]),
        "sparse.mm": lambda h: (
            torch.sparse.mm(fixed(3, 3).to_sparse(), h.movedim(0, -1).reshape(3, -1)).view(3, 4, len(h)).movedim(-1, 0)
        ),
    },
)


def by_math(h: Tensor) -> Tensor:
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(h, h.sin(), h.cos())


ATTENTION = functions(
    (2, 5, 4),
    {
        "attention": lambda h: F.scaled_dot_product_attention(h, h.sin(), h.cos()),
        "attention, causal": lambda h: F.scaled_dot_product_attention(h, h.sin(), h.cos(), is_causal=True),
        "attention, boolean mask": lambda h: F.scaled_dot_product_attention(h, h.sin(), h.cos(), BAND),
        "attention, additive mask": lambda h: F.scaled_dot_product_attention(h, h.sin(), h.cos(), fixed(5, 5)),
        "attention, grouped queries": lambda h: F.scaled_dot_product_attention(
            h, h[:, :1].sin(), h[:, :1].cos(), enable_gqa=True
        ),
        "attention, math backend": by_math,
        "attention, written out": lambda h: (h @ h.sin().mT / 2).softmax(-1) @ h.cos(),
    },
)

LINALG = functions(
    (3, 3),
    {
        "det": lambda h: linalg.det(regular(h)),
        "logdet": lambda h: torch.logdet(spd(h)),
        "slogdet": lambda h: linalg.slogdet(regular(h)).logabsdet,
        "solve": lambda h: linalg.solve(regular(h), h.sin()),
        "solve, vector": lambda h: linalg.solve(regular(h), fixed(3, 1)),
        "solve_triangular": lambda h: linalg.solve_triangular(regular(h), h.sin(), upper=True),
        "inv": lambda h: linalg.inv(regular(h)),
        "inv_ex": lambda h: linalg.inv_ex(regular(h)).inverse,
        "cholesky": lambda h: linalg.cholesky(spd(h)),
        "cholesky_solve": lambda h: torch.cholesky_solve(h.sin(), linalg.cholesky(spd(h))),
        "cholesky_inverse": lambda h: torch.cholesky_inverse(linalg.cholesky(spd(h))),
        "eigvalsh": lambda h: linalg.eigvalsh(spd(h)),
        "eigh": lambda h: linalg.eigh(spd(h)).eigenvectors ** 2,
        "eigvals": lambda h: linalg.eigvals(regular(spd(h))).real,
        "eig": lambda h: linalg.eig(spd(h)).eigenvectors.abs(),
        "svdvals": lambda h: linalg.svdvals(spd(h)),
        "svd": lambda h: linalg.svd(spd(h)).U ** 2,
        "qr": lambda h: linalg.qr(regular(h)).R,
        "householder_product": lambda h: linalg.householder_product(h, h[:, 0].sin()),
        "lu": lambda h: linalg.lu(regular(h)).U,
        "lu_solve": lambda h: linalg.lu_solve(*linalg.lu_factor(regular(h)), h.sin()),
        "lstsq": lambda h: linalg.lstsq(regular(h)[:, :, :2], h.sin()).solution,
        "pinv": lambda h: linalg.pinv(regular(h)[:, :, :2]),
        "pinv, hermitian": lambda h: linalg.pinv(spd(h), hermitian=True),
        "matrix_exp": linalg.matrix_exp,
        "matrix_power": lambda h: linalg.matrix_power(h, 3),
        "matrix_power, -2": lambda h: linalg.matrix_power(regular(h), -2),
        "cond": lambda h: linalg.cond(regular(h)),
        "cond, p = 1": lambda h: linalg.cond(regular(h), 1),
        "trace": lambda h: torch.stack([torch.trace(one**2) for one in h]),
        "tensorinv": lambda h: torch.stack([linalg.tensorinv(regular(one)[:, :, None], 1) for one in h]),
        "tensorsolve": lambda h: torch.stack([linalg.tensorsolve(regular(one), one[0].sin()) for one in h]),
    },
)

SPECTRAL = functions(
    (8,),
    {
        "fft": lambda h: torch.fft.fft(h).abs(),
        "fft, real": lambda h: torch.fft.fft(h).real,
        "ifft": lambda h: torch.fft.ifft(h * torch.exp(1j * fixed(8))).imag,
        "rfft, irfft": lambda h: torch.fft.irfft(torch.fft.rfft(h) * fixed(5), 8),
        "fft2": lambda h: torch.fft.fft2(h.view(-1, 2, 4)).imag,
        "rfft2, irfft2": lambda h: torch.fft.irfft2(torch.fft.rfft2(h.view(-1, 2, 4)) * fixed(2, 3), (2, 4)),
        "hfft": torch.fft.hfft,
        "ihfft": lambda h: torch.fft.ihfft(h).abs(),
        "fftshift": lambda h: torch.fft.fftshift(h, -1) * fixed(8),
        "stft": lambda h: torch.stft(h, 4, 2, window=1.5 + fixed(4), return_complex=True).abs(),
        "stft, istft": lambda h: torch.istft(
            torch.stft(h, 4, 1, window=torch.hann_window(4), return_complex=True) * fixed(3, 1),
            *(4, 1),
            window=torch.hann_window(4),
        ),
        "view_as_complex": lambda h: torch.view_as_complex(h.view(-1, 4, 2)).abs(),
        "view_as_real": lambda h: torch.view_as_real(h * torch.exp(1j * h)),
        "complex": lambda h: torch.complex(h[:, :4], h[:, 4:]).pow(2).imag,
        "polar": lambda h: torch.polar(h[:, :4] ** 2, h[:, 4:]).sin().real,
        "angle": lambda h: torch.complex(h[:, :4], h[:, 4:]).angle(),
        "complex sgn": lambda h: torch.complex(h[:, :4], h[:, 4:]).sgn().real,
        "complex matmul": lambda h: (torch.complex(h[:, :4], h[:, 4:]) @ torch.complex(fixed(4, 3), fixed(4, 3))).abs(),
        "complex conj": lambda h: (torch.complex(h[:, :4], h[:, 4:]).conj() * torch.exp(1j * h[:, :4])).imag,
    },
)
