//! The sheet: colours by name, once for light and once for dark.

/// Everything the page needs to look the way it does.
pub const SHEET: &str = "
:root {
  --page: #fbfaf8; --card: #ffffff; --ink: #1d2430; --soft: #5b6472; --line: #e3e1dc; --grid: #efede8;
  --good: #2f7d5b; --good-bg: #e3f2ea; --bad: #c2382e; --bad-bg: #fbe6e3; --open: #9a6b00; --open-bg: #fbf0d5;
  --healthy: #cfe6da; --stable_miss: #b9c3d6; --knife_edge: #e7cf8f; --cut_off: #e9a96b; --ngram_loop: #b58ad6;
  --single_token_run: #c2382e; --lucky_garbage: #ee8a7f; --empty: #8d96a5; --cancelled: #c9c2b4; --client_error: #4a5160;
  --accent: #27549b; --window: #1d2430;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --card: #1b1f26; --ink: #e7e9ee; --soft: #9aa3b2; --line: #2c323c; --grid: #242932;
    --good: #6cc79c; --good-bg: #173127; --bad: #f0786c; --bad-bg: #3a1a18; --open: #e2b548; --open-bg: #362a10;
    --healthy: #27513f; --stable_miss: #56617a; --knife_edge: #8a7430; --cut_off: #a8672b; --ngram_loop: #7b4fa3;
    --single_token_run: #e0564a; --lucky_garbage: #a8463d; --empty: #6d7685; --cancelled: #5c574c; --client_error: #aab2c0;
    --accent: #8ab4f8; --window: #f4f5f7;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 64px; }
header { margin-bottom: 20px; }
h1 { font-size: 21px; line-height: 1.35; font-weight: 600; margin: 10px 0 16px; text-wrap: balance; }
h2 { font-size: 17px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 24px 0 6px; color: var(--soft); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin: 0 0 18px; }
.badge { display: inline-block; margin: 0; padding: 3px 12px; border-radius: 999px; font-weight: 600; font-size: 14px; }
.badge.small { padding: 1px 9px; font-size: 12.5px; }
.badge.pass { color: var(--good); background: var(--good-bg); }
.badge.fail { color: var(--bad); background: var(--bad-bg); }
.badge.open { color: var(--open); background: var(--open-bg); }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; min-width: 96px; }
.tiles dt { color: var(--soft); font-size: 12.5px; }
.tiles dd { margin: 0; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line); padding: 5px 10px 5px 0; white-space: nowrap; }
td { border-bottom: 1px solid var(--grid); padding: 5px 10px 5px 0; vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.num { text-align: right; }
.num + :not(.num) { padding-left: 16px; }
.rivals code { white-space: nowrap; }
code { font: 12.5px ui-monospace, 'SF Mono', 'Cascadia Mono', 'DejaVu Sans Mono', monospace; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 13.5px; margin: 8px 0 0; }
details { margin: 10px 0 0; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
figure { margin: 0 0 10px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif; }
svg .mark { fill: var(--ink); font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0 0; padding: 0; list-style: none; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
.legend i.under { background: var(--window); height: 3px; vertical-align: 3px; }
.legend i.dot { border-radius: 50%; width: 9px; height: 9px; vertical-align: 0; }
.claim { font-size: 15.5px; margin: 0 0 12px; }
.rivals .bar { position: relative; min-width: 150px; }
.rivals .bar span { position: absolute; left: 0; top: 6px; height: 18px; background: var(--line); border-radius: 4px; }
.rivals .bar em { position: relative; font-style: normal; padding-left: 8px; }
.rivals .won .bar span { background: var(--good-bg); }
.rivals .won td { font-weight: 600; }
th:last-child, td:last-child { padding-right: 0; }
@media print { body { background: none; } section { break-inside: avoid; } }
";
