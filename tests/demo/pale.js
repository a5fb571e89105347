// Texts of ours with too little contrast against what is behind them (WCAG 2: 4.5, or 3 for large text).
const level = (color) => {
  const [r, g, b] = color.map((v) => (v / 255 <= 0.03928 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const parse = (color) => color.match(/[\d.]+/g).map(Number);
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const color = parse(getComputedStyle(element).backgroundColor);
    if (color.length < 4 || color[3] > 0.95) return color.slice(0, 3);
  }
  return [255, 255, 255];
};
const found = [];
for (const element of document.querySelectorAll('[class*=qllm] *, [class*=qllm], label span, .tab-container button')) {
  const writes = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const isSeen = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  // pictures have a background of their own, and gradio's buttons are gradio's
  if (!writes || !isSeen || element.closest('svg, .visually-hidden')) continue;
  if (element.closest('button:not(.qllm-cell):not([role=tab])')) continue;
  const style = getComputedStyle(element);
  const size = parseFloat(style.fontSize);
  const levels = [level(parse(style.color).slice(0, 3)), level(behind(element))].sort((a, b) => b - a);
  const ratio = (levels[0] + 0.05) / (levels[1] + 0.05);
  const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  if (ratio < (isLarge ? 3 : 4.5)) found.push([element.textContent.trim().slice(0, 40), element.className, ratio.toFixed(2)]);
}
return found;
