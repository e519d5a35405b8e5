"""Plausible wrong answers to the tasks of the assignments: assignment → task → mistake → the code that makes it."""

WRONG: dict[str, dict[int, dict[str, str]]] = {}

WRONG["01_similarity"] = {
    1: {
        "not centred": "def centred_gram(x):\n    return x @ x.T",
        "mean over the wrong axis": """
def centred_gram(x):
    x = x - x.mean(1, keepdim=True)
    return x @ x.T
""",
    },
    2: {
        "not centred": """
def biased_cka(x, y):
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
""",
        "no root in the denominator": """
def biased_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return (x.T @ y).square().sum() / ((x.T @ x).square().sum() * (y.T @ y).square().sum())
""",
        "the library's": """
from helpers.measures.cka import cka as library_cka


def biased_cka(x, y):
    return library_cka(x, y, debiased=False)
""",
    },
    3: {
        "biased HSIC": """
def unbiased_hsic(K, L):
    n = len(K)
    H = torch.eye(n) - 1 / n
    return (K @ H @ L @ H).trace() / (n - 1) ** 2
""",
        "diagonals kept": """
def unbiased_hsic(K, L):
    n = len(K)
    whole = (K @ L).trace() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K @ L).sum()
    return whole / (n * (n - 3))
""",
        "the matrices changed in place": """
def unbiased_hsic(K, L):
    n = len(K)
    K.fill_diagonal_(0), L.fill_diagonal_(0)
    whole = (K @ L).trace() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K @ L).sum()
    return whole / (n * (n - 3))
""",
    },
    4: {
        "mean of ratios": """
def minibatch_cka(pairs):
    found = []
    for x, y in pairs:
        K, L = x @ x.T, y @ y.T
        found.append(hsic_unbiased(K, L) / (hsic_unbiased(K, K) * hsic_unbiased(L, L)).sqrt())
    return sum(found) / len(found)
""",
        "one large batch": """
def minibatch_cka(pairs):
    x, y = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    K, L = x @ x.T, y @ y.T
    return hsic_unbiased(K, L) / (hsic_unbiased(K, K) * hsic_unbiased(L, L)).sqrt()
""",
    },
    5: {
        "standard error of single groups": """
def jackknife_error(hsics):
    theta = hsics[:, 0] / (hsics[:, 1] * hsics[:, 2]).sqrt()
    return theta.std() / len(theta) ** 0.5
""",
        "standard deviation of the θ": """
def jackknife_error(hsics):
    left_out = hsics.sum(0) - hsics
    theta = left_out[:, 0] / (left_out[:, 1] * left_out[:, 2]).sqrt()
    return theta.std()
""",
    },
    6: {
        "nothing changed": "def invisible(x):\n    return x\n\n\ndef loud(x):\n    return x",
        "everything scaled": "def invisible(x):\n    return 2 * x\n\n\ndef loud(x):\n    return 100 * x",
        "a neuron lost": """
def invisible(x):
    return x @ torch.linalg.qr(torch.randn(x.shape[1], x.shape[1])).Q


def loud(x):
    x = x.clone()
    x[:, 0] = 100 * torch.randn(len(x))
    return x
""",
    },
    7: {
        "neurons shuffled": """
def with_control(x, y, seed):
    generator = torch.Generator().manual_seed(seed)
    K = x @ x.T

    def cka_with(L):
        return hsic_unbiased(K, L) / (hsic_unbiased(K, K) * hsic_unbiased(L, L)).sqrt()

    shuffled = []
    for _ in range(20):
        z = y[:, torch.randperm(y.shape[1], generator=generator)]
        shuffled.append(cka_with(z @ z.T))
    return cka_with(y @ y.T), torch.stack(shuffled).mean()
""",
        "both sides in one order": """
def with_control(x, y, seed):
    generator = torch.Generator().manual_seed(seed)
    K, L = x @ x.T, y @ y.T
    size = (hsic_unbiased(K, K) * hsic_unbiased(L, L)).sqrt()
    shuffled = []
    for _ in range(20):
        order = torch.randperm(len(L), generator=generator)
        shuffled.append(hsic_unbiased(K[order][:, order], L[order][:, order]) / size)
    return hsic_unbiased(K, L) / size, torch.stack(shuffled).mean()
""",
    },
}
