// An authorization server on loopback: node server.mjs PORT KID
//
// One client may ask for access tokens (client credentials grant). They are
// JWTs for the resource that it names, signed with the algorithm that is the
// last part of the resource's path. The keys are new at each start; their ids
// begin with KID. GET /fetches tells how often they were asked for.
import { generateKeyPairSync } from "node:crypto";
import { Provider } from "oidc-provider";

const [port, kid] = process.argv.slice(2);
const KEYS_PATH = "/.well-known/jwks.json";

function key(alg, kind, options) {
  const { privateKey } = generateKeyPairSync(kind, options);
  return { ...privateKey.export({ format: "jwk" }), kid: `${kid}-${alg}`, alg, use: "sig" };
}

const keys = [
  key("ES256", "ec", { namedCurve: "P-256" }),
  key("EdDSA", "ed25519", {}),
  key("RS256", "rsa", { modulusLength: 2048 }),
];

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: "portal",
      client_secret: "the-secret-of-the-portal",
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
    },
  ],
  jwks: { keys },
  routes: { jwks: KEYS_PATH },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_context, resource) => ({
        scope: "desktops others",
        audience: resource,
        accessTokenTTL: 600,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: resource.split("/").pop() } },
      }),
    },
  },
});

let fetches = 0;
provider.use(async (context, next) => {
  if (context.path === "/fetches") {
    context.body = String(fetches);
    return;
  }
  if (context.path === KEYS_PATH) fetches += 1;
  await next();
});

provider.listen(Number(port), "127.0.0.1", () => console.log("serves"));
