// An OpenID Connect issuer (oidc-provider) for tests, on loopback: its URL is printed when it listens.
//
// POST /control changes it, with a JSON object: `rotate` (new keys, the old ones are gone), `clock` (seconds that its clock is
// ahead), `ttl` (of access tokens, in seconds), `issuer` (the name under which it signs; its documents stay as they are),
// `alg` (of signatures), `groups` (a claim of the tokens that it signs from then on).
import { createServer } from "node:http";
import { generateKeyPairSync, randomUUID } from "node:crypto";
import Provider from "oidc-provider";

const state = { ttl: 300, clock: 0, alg: "RS256", groups: [], keys: [] };
const real = Date.now;
Date.now = () => real() + state.clock * 1000;

function key(kind, options, alg) {
  const { privateKey } = generateKeyPairSync(kind, options);
  return { ...privateKey.export({ format: "jwk" }), kid: randomUUID(), use: "sig", alg };
}

function rotate() {
  state.keys = [
    key("rsa", { modulusLength: 2048 }, "RS256"),
    key("rsa", { modulusLength: 2048 }, "PS256"),
    key("ec", { namedCurve: "P-256" }, "ES256"),
    key("ec", { namedCurve: "P-384" }, "ES384"),
    key("ed25519", {}, "EdDSA"),
  ];
}

function provider(issuer) {
  const provider = new Provider(issuer, {
    clients: [
      { client_id: "ada", client_secret: "ada-secret", grant_types: ["client_credentials"], redirect_uris: [], response_types: [] },
      { client_id: "eve", client_secret: "eve-secret", grant_types: ["client_credentials"], redirect_uris: [], response_types: [] },
    ],
    jwks: { keys: state.keys },
    enabledJWA: { idTokenSigningAlgValues: ["RS256", "PS256", "ES256", "ES384", "EdDSA"] },
    extraTokenClaims: () => (state.groups.length ? { groups: state.groups } : {}),
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, audience) => ({
          scope: "chat",
          audience,
          accessTokenTTL: state.ttl,
          accessTokenFormat: "jwt",
          jwt: { sign: { alg: state.alg } },
        }),
      },
    },
  });
  return provider.callback();
}

rotate();
const server = createServer((request, response) => {
  if (request.url !== "/control") {
    // Tokens are signed in the name that was asked for; who this is, is said in its own.
    const signs = request.method === "POST";
    return (signs ? state.signs : state.serves)(request, response);
  }
  let body = "";
  request.on("data", (chunk) => (body += chunk));
  request.on("end", () => {
    const { rotate: anew, issuer, ...rest } = JSON.parse(body);
    Object.assign(state, rest);
    if (anew) rotate();
    configure(issuer);
    response.end("{}");
  });
});

function configure(issuer) {
  state.serves = provider(url());
  state.signs = issuer ? provider(issuer) : state.serves;
}
const url = () => `http://127.0.0.1:${server.address().port}`;

// A port may be named, so that an issuer can come back under its name.
server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  configure();
  console.log(url());
});
