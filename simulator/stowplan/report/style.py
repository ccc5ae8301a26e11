"""How a page looks, and the few lines of script that it needs: hover, copy."""

from __future__ import annotations

from stowplan.report.families import COLOUR, Family

_DARK_INK_ON = [family for family in Family if family not in {Family.ATTENTION, Family.DISK}]

_BASE = """
:root{--paper:#fff;--ink:#1b1f24;--soft:#5b6470;--line:#d9dee4;--wash:#f4f6f8;--hold:#eceff2;--accent:#0072b2;
--measured:#d5ebe2;--fitted:#d8e9f6;--datasheet:#ececec;--assumed:#fbe6c2;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e7eaee;--soft:#9aa4b0;--line:#343b43;--wash:#1d2126;
--hold:#23282e;--accent:#56b4e9;--measured:#14483a;--fitted:#143e5c;--datasheet:#33383e;--assumed:#5a430f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1160px;margin:0 auto;padding:28px 24px 64px}
h1{font-size:1.35rem;line-height:1.3;margin:0;font-weight:650;overflow-wrap:anywhere}
h1 span{font-weight:400;color:var(--soft)}
h2{font-size:1.15rem;margin:52px 0 4px;font-weight:650}
h3{font-size:.95rem;margin:22px 0 4px;font-weight:600}
p{margin:4px 0 10px;max-width:92ch}
.soft,.note{color:var(--soft)}
.note{font-size:.9rem;max-width:100ch}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:14px 40px;margin:22px 0 12px}
.answer .value{font-size:1.5rem;font-weight:650;line-height:1.25;white-space:nowrap}
.answer.first .value{font-size:2.3rem;line-height:1.1}
.answer .value small{font-size:1rem;font-weight:400;color:var(--soft)}
.answer .name{font-size:.9rem;color:var(--soft)}
.answer svg{display:block;width:100%;max-width:260px;height:auto;margin-top:4px}
.limit{font-size:1.05rem;margin:12px 0 4px}
.warning{border-left:4px solid #d55e00;padding:6px 12px;background:var(--wash);margin:10px 0;overflow-wrap:anywhere}
.shares{display:grid;grid-template-columns:max-content minmax(80px,340px) max-content;gap:2px 12px;align-items:center;
font-size:.9rem;margin:10px 0}
.shares i{display:block;height:10px;background:var(--accent);border-radius:1px;min-width:1px}
.shares b{font-weight:400;text-align:right}
.command{position:relative;margin:18px 0 0}
pre{margin:0;background:var(--wash);border:1px solid var(--line);border-radius:6px;padding:12px 76px 12px 14px;
white-space:pre-wrap;overflow-wrap:anywhere;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;max-height:340px;overflow-y:auto}
button{position:absolute;top:8px;right:8px;font:inherit;font-size:.85rem;padding:3px 12px;border:1px solid var(--line);
border-radius:5px;background:var(--paper);color:var(--ink);cursor:pointer}
button:focus-visible{outline:2px solid var(--accent)}
.picture,.scroll{overflow-x:auto}
.picture svg{display:block;width:100%;min-width:820px;height:auto}
.picture text{fill:var(--ink);font-size:13px}
.picture .small{font-size:12px}
.picture .faint{fill:var(--soft)}
.picture .strong{font-weight:650}
.picture .end{text-anchor:end}
.picture .middle{text-anchor:middle}
.hold{fill:var(--hold)}
.box{shape-rendering:crispEdges}
.row{fill:var(--wash)}
.rule{stroke:var(--line);stroke-width:1}
.capacity{stroke:var(--ink);stroke-width:3}
.lead{stroke:var(--soft);stroke-width:1;fill:none}
.seam{stroke:var(--paper);stroke-width:.75;stroke-opacity:.7}
.whisker{stroke:var(--accent);stroke-width:7;stroke-linecap:round;opacity:.35}
.mean{fill:var(--accent)}
[data-tip]:hover{opacity:.82}
.holdhead{display:flex;justify-content:space-between;gap:4px 20px;flex-wrap:wrap;margin:16px 0 3px}
.holdhead b{font-weight:600}
.plot{width:100%;height:480px}
.scroll>.plot{min-width:820px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:8px 24px}
.pair .plot{height:330px}
.js-plotly-plot text{fill:var(--ink)!important;font-family:inherit!important}
.js-plotly-plot .hoverlayer text{fill:#fff!important}
.js-plotly-plot .gridlayer path,.js-plotly-plot .zerolinelayer path{stroke:var(--line)!important}
table{border-collapse:collapse;width:100%;font-size:.9rem;margin:8px 0}
th{text-align:left;font-weight:600;color:var(--soft);border-bottom:1px solid var(--line)}
th,td{padding:4px 14px 4px 0;vertical-align:top}
td{border-bottom:1px solid var(--line)}
td:last-child,th:last-child{padding-right:0}
.number{text-align:right;white-space:nowrap}
code{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.kind{padding:1px 8px;border-radius:9px;white-space:nowrap}
.measured{background:var(--measured)}.fitted{background:var(--fitted)}
.datasheet{background:var(--datasheet)}.assumed{background:var(--assumed)}
details{margin:8px 0}summary{cursor:pointer;color:var(--soft);font-size:.9rem}
#tip{position:fixed;pointer-events:none;background:#1b1f24;color:#fff;padding:5px 10px;border-radius:5px;font-size:13px;
max-width:340px;z-index:9;white-space:pre-line;border:1px solid #555}
#tip[hidden]{display:none}
@media (max-width:640px){main{padding:18px 14px 48px}.answer.first .value{font-size:2rem}h2{margin-top:40px}
.shares{grid-template-columns:minmax(90px,max-content) minmax(40px,1fr) max-content}}
@media print{button{display:none}}
"""

SCRIPT = """
(function(){
var tip=document.getElementById('tip');
document.addEventListener('pointermove',function(e){
var at=e.target.closest&&e.target.closest('[data-tip]');
tip.hidden=!at;if(!at)return;
tip.textContent=at.getAttribute('data-tip');
tip.style.left=Math.max(4,Math.min(e.clientX+14,innerWidth-tip.offsetWidth-6))+'px';
tip.style.top=(e.clientY+18+tip.offsetHeight>innerHeight?e.clientY-tip.offsetHeight-10:e.clientY+18)+'px';
});
document.addEventListener('click',function(e){
if(!e.target.matches||!e.target.matches('button[data-copies]'))return;
var box=document.getElementById(e.target.getAttribute('data-copies'));
function done(){e.target.textContent='Copied';setTimeout(function(){e.target.textContent='Copy';},1500);}
function byHand(){var r=document.createRange();r.selectNodeContents(box);var s=getSelection();s.removeAllRanges();
s.addRange(r);if(document.execCommand('copy'))done();}
if(navigator.clipboard)navigator.clipboard.writeText(box.textContent).then(done,byHand);else byHand();
});
})();
"""


def style_sheet() -> str:
    """The style sheet: light and dark by what the reader's system prefers, one colour per family."""
    fills = "".join(f".{family}{{fill:{COLOUR[family]}}}\n" for family in Family)
    dark_ink = ",".join(f".picture .on-{family}" for family in _DARK_INK_ON)
    light_ink = ",".join(f".picture .on-{family}" for family in Family if family not in _DARK_INK_ON)
    return f"{_BASE}{fills}{dark_ink}{{fill:#111}}\n{light_ink}{{fill:#fff}}\n"
