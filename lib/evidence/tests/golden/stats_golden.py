"""Golden numbers for lib/evidence/src/stats, made with scipy. Run: python3 stats_golden.py > stats_golden.json"""
import json
import numpy as np
from scipy import stats

intervals = []
for k, n in [(0, 1), (1, 1), (0, 50), (50, 50), (48, 50), (11, 50), (37, 50), (47, 50), (199, 250), (1, 1000), (500, 1000), (3, 7)]:
    for level in (0.9, 0.95, 0.99):
        result = stats.binomtest(k, n)
        w = result.proportion_ci(level, "wilson")
        c = result.proportion_ci(level, "exact")
        intervals.append([k, n, level, w.low, w.high, c.low, c.high])

binomial = [[k, n, p, stats.binom.cdf(k, n, p), stats.binom.pmf(k, n, p)]
            for k, n, p in [(44, 50, .96), (44, 50, .9), (45, 50, .9), (45, 50, .94), (37, 50, .96), (11, 50, .96), (0, 10, .01), (999, 1000, .999), (3, 3, .5)]]

mcnemar = [[b, c, float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0]
           for b, c in [(0, 0), (1, 0), (5, 0), (6, 0), (0, 6), (10, 2), (38, 0), (37, 1), (7, 7), (120, 80)]]

chi2 = []
for runs in [[(48, 50), (48, 50), (48, 50), (11, 50), (37, 50)], [(47, 50), (47, 50), (47, 50), (11, 50), (35, 50)],
             [(48, 50)] * 5, [(48, 50), (47, 50)], [(40, 50), (25, 30), (9, 20)]]:
    table = np.array([[k for k, _ in runs], [n - k for k, n in runs]])
    r = stats.chi2_contingency(table, correction=False)
    chi2.append([runs, r.statistic, int(r.dof), r.pvalue])

# Exact homogeneity: P(sum of squares >= observed | total), by enumeration of all tables.
exact = []
for runs in [[(4, 5), (1, 5), (5, 5)], [(10, 10), (9, 10), (4, 10)], [(3, 6), (3, 6), (3, 6), (0, 6)]]:
    n = runs[0][1]; total = sum(k for k, _ in runs); observed = sum(k * k for k, _ in runs)
    import itertools, math
    num = den = 0
    for xs in itertools.product(range(n + 1), repeat=len(runs)):
        if sum(xs) == total:
            w = math.prod(math.comb(n, x) for x in xs)
            den += w
            num += w if sum(x * x for x in xs) >= observed else 0
    exact.append([runs, num / den])

# Mean run length of the integer CUSUM by a dense linear solve: N = 1 + Q N.
arl = []
for up, down, h, p in [(11, 1, 30, .04), (11, 1, 30, .15), (9, 1, 53, 3 / 52), (9, 1, 53, .16), (1, 1, 5, .3), (11, 1, 60, .04),
                       (24, 1, 24, .01), (5, 1, 40, .1), (2, 1, 200, .4), (3, 10, 60, .7), (3, 2, 45, .3), (7, 5, 90, .35), (1, 3, 12, .7)]:
    Q = np.zeros((h, h))
    for s in range(h):
        Q[s, max(s - down, 0)] += 1 - p
        if s + up < h:
            Q[s, s + up] += p
    arl.append([up, down, h, p, float(np.linalg.solve(np.eye(h) - Q, np.ones(h))[0])])

# Holm's correction, by its definition.
def holm(p):
    order = np.argsort(p, kind="stable"); out = np.empty(len(p)); least = 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, p[at] * (len(p) - rank))); out[at] = least
    return out.tolist()
holms = [[p, holm(p)] for p in [[.01, .04, .03, .005], [1.0, 1.0, 1e-11, 2e-4], [.5]]]

print(json.dumps(dict(scipy=__import__("scipy").__version__, intervals=intervals, binomial=binomial, mcnemar=mcnemar,
                      chi2=chi2, exact=exact, arl=arl, holm=holms), indent=1))
