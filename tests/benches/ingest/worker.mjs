// What the team has: a Worker that verifies the signature and puts to KV.
let key;

export default {
  async fetch(request, env) {
    key ??= await crypto.subtle.importKey(
      "raw", new TextEncoder().encode(env.HOOK_SECRET), { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
    const body = await request.arrayBuffer();
    const hex = request.headers.get("x-nango-hmac-sha256") ?? "";
    const given = Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
    if (!(await crypto.subtle.verify("HMAC", key, given, body))) return new Response(null, { status: 401 });
    const { connectionId } = JSON.parse(new TextDecoder().decode(body));
    await env.TOKENS.put(`tokens:${connectionId}`, body, { metadata: { v: 1 } });
    return Response.json({ status: "accepted" });
  },
};
