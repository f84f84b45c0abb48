// Passkeys (WebAuthn): the browser asks the person for one, and the form sends what the authenticator answers.
// `data-passkeys` is shown where that works, `data-no-passkeys` where it does not.
const isAvailable = Boolean(window.isSecureContext && window.PublicKeyCredential && navigator.credentials);
for (const one of document.querySelectorAll("[data-passkeys]")) one.hidden = !isAvailable;
for (const one of document.querySelectorAll("[data-no-passkeys]")) one.hidden = isAvailable;

const toBytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (one) => one.charCodeAt(0));
const toText = (buffer) => btoa(Array.from(new Uint8Array(buffer), (one) => String.fromCharCode(one)).join("")).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const named = (list = []) => list.map((one) => ({ ...one, id: toBytes(one.id) }));

async function create(options) {
  const user = { ...options.user, id: toBytes(options.user.id) };
  const publicKey = { ...options, user, challenge: toBytes(options.challenge), excludeCredentials: named(options.excludeCredentials) };
  const made = await navigator.credentials.create({ publicKey });
  return answer(made, { attestationObject: toText(made.response.attestationObject) });
}

async function get(options) {
  const publicKey = { ...options, challenge: toBytes(options.challenge), allowCredentials: named(options.allowCredentials) };
  const found = await navigator.credentials.get({ publicKey });
  const { authenticatorData, signature, userHandle } = found.response;
  return answer(found, { authenticatorData: toText(authenticatorData), signature: toText(signature), userHandle: userHandle ? toText(userHandle) : null });
}

function answer(credential, response) {
  const { id, type, rawId } = credential;
  return { id, type, rawId: toText(rawId), response: { ...response, clientDataJSON: toText(credential.response.clientDataJSON) } };
}

function reason(error) {
  if (error.name === "NotAllowedError") return Luthier.t("Nothing was done: it was cancelled, or took too long.");
  if (error.name === "InvalidStateError") return Luthier.t("This device has a passkey of yours already.");
  if (error.name === "SecurityError") return Luthier.t("The browser has no passkeys for this address.");
  return Luthier.t("The browser could not do it: {reason}", { reason: error.name });
}

const form = document.querySelector("form[data-passkey]");
let isAsking = false;
async function ask() {
  if (isAsking) return;
  isAsking = true;
  const status = form.querySelector("[data-passkey-status]");
  status.textContent = "";
  try {
    const options = JSON.parse(form.dataset.options);
    form.elements.credential.value = JSON.stringify(await (form.dataset.passkey === "create" ? create(options) : get(options)));
    form.submit(); // raises no event, so that nothing asks again
  } catch (error) {
    status.textContent = reason(error);
    isAsking = false;
  }
}
if (form && isAvailable) {
  form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  ask();
} else if (form) {
  form.querySelector("[data-passkey-status]").textContent = Luthier.t("This browser does not support passkeys.");
}
