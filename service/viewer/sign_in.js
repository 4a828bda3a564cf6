// Signing in by an API key. The key is exchanged for a cookie that scripts cannot read, and kept nowhere.

const byId = (id) => document.getElementById(id);
const dialog = byId("sign-in");
const NO_ANSWER = "The server does not answer.";

let asking = null;
let signIns = 0;

export const countSignIns = () => signIns;

// Resolves once the browser has signed in `since` this count was taken; all who ask meanwhile wait for the same.
export function askForKey(since) {
  if (signIns > since) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    const signedIn = (session) => {
      asking = null;
      signIns += 1;
      dialog.removeEventListener("cancel", stay);
      dialog.close();
      showAccount(session);
      resolve();
    };
    dialog.addEventListener("cancel", stay);
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
  if (signIns === since) showAccount(session);
  if (session.keys_required && !session.key) askForKey(since);
}

byId("sign-out").addEventListener("click", async () => {
  await fetch("v1/session", { method: "DELETE" }).catch(() => null);
  location.assign("./"); // with nothing of what was shown
});

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

function showAccount({ key }) {
  byId("account").hidden = !key;
  byId("account-name").textContent = key ? key.name : "";
}

// Behind the dialog there is nothing to go back to.
function stay(event) {
  event.preventDefault();
}
