// Signing in by an API key. The key is exchanged for a cookie that scripts cannot read, and kept nowhere.

const byId = (id) => document.getElementById(id);
const dialog = byId("sign-in");
const NO_ANSWER = "The server does not answer.";

let asking = null;
let signIns = 0;
let holder = null; // id of the key whose things may be on this page; "" where none is needed

export const countSignIns = () => signIns;

// Resolves once the browser has signed in `since` this count was taken; all who ask meanwhile wait for the same.
export function askForKey(since) {
  if (signIns > since) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    const signedIn = (session) => {
      if (isOthers(session)) return leave(); // what waits is not done by another's key
      asking = null;
      signIns += 1;
      dialog.close();
      showAccount(session);
      resolve();
    };
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      signIn(signedIn);
    };
    dialog.showModal();
  });
  return asking;
}

// Whose key it is, where keys are used.
export async function loadAccount() {
  const since = signIns;
  const response = await fetch("v1/session").catch(() => null);
  if (!response?.ok) return;
  const session = await response.json();
  if (isOthers(session)) return leave(); // signed in in another tab
  if (signIns === since) showAccount(session);
  if (session.keys_required && !session.key) askForKey(since);
}

byId("sign-out").addEventListener("click", async () => {
  await fetch("v1/session", { method: "DELETE" }).catch(() => null);
  leave();
});

// Behind the dialog there is nothing to go back to. Browsers let a second Escape through.
dialog.addEventListener("cancel", (event) => event.preventDefault());
dialog.addEventListener("close", () => asking && !dialog.open && dialog.showModal());

async function signIn(signedIn) {
  const field = byId("key");
  refuse("");
  const response = await send(field.value.trim());
  if (!response) return refuse(NO_ANSWER);
  const answer = await response.json().catch(() => ({ detail: `The server answered ${response.status}.` }));
  if (!response.ok) return refuse(answer.detail);
  field.value = "";
  signedIn(answer);
}

function send(key) {
  const headers = { "Content-Type": "application/json" };
  return fetch("v1/session", { method: "POST", headers, body: JSON.stringify({ key }) }).catch(() => null);
}

function refuse(text) {
  byId("refusal-key").textContent = text;
  byId("key").setAttribute("aria-invalid", String(Boolean(text)));
  if (text) byId("key").select();
}

const isOthers = ({ key }) => holder !== null && key !== null && holder !== key.id;

function showAccount({ key, keys_required }) {
  if (key || !keys_required) holder = key?.id ?? "";
  byId("account").hidden = !key;
  byId("account-name").textContent = key ? key.name : "";
}

// For a page with nothing of what was shown, not even by way back.
function leave() {
  addEventListener("pageshow", () => location.reload());
  location.assign("./");
}
