// Fields and buttons that a screen reader would have no name for.
return [...document.querySelectorAll('input, textarea, select, button')]
  .filter((element) => element.checkVisibility() && !element.closest('[aria-hidden=true], label'))
  .filter((element) => !(element.innerText || '').trim() && !(element.labels && element.labels.length))
  .filter((element) => !element.getAttribute('aria-label') && !element.getAttribute('title'))
  .map((element) => element.outerHTML.slice(0, 120));
