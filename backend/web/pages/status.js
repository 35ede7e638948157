// Keeps the parts of the page that change up to date. Without it the page works as it stands, and is loaded anew every half minute.
const SECONDS = 3;
const lost = document.getElementById("lost");

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { credentials: "same-origin", signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(answer.statusText);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = fresh.title;
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(part.id);
      // what somebody reads from the keyboard, or has selected, stays where it is
      const used = part.contains(document.activeElement) || (!getSelection().isCollapsed && part.contains(getSelection().anchorNode));
      if (!next || used || part.innerHTML === next.innerHTML) continue;
      const open = [...part.querySelectorAll("details")].map(one => one.open);
      part.replaceChildren(...next.childNodes);
      part.querySelectorAll("details").forEach((one, index) => { one.open = open[index] ?? false; });
    }
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
}

setInterval(refresh, SECONDS * 1000);
document.addEventListener("visibilitychange", refresh);
