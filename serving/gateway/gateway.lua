-- Checks the caller's API key, limits the time of one try, and logs which model version answered. KEYS, OPEN_PATHS
-- and the limits are rendered above this text.
-- The SHA-256 of x-api-key identifies the caller. The filter removes that header and adds the key's name as
-- x-fruitstand-key, for quotas and the log.
local bit = require("bit")
local band, bnot, bxor, ror, rshift, tobit = bit.band, bit.bnot, bit.bxor, bit.ror, bit.rshift, bit.tobit

-- FIPS 180-4: the constants are the fractional parts of the roots of the first 64 primes.
local K, INITIAL = {}, {}
do
  local function fraction(root, scale)  -- the first 32 bits of the fraction, exact in a double
    return tobit(math.floor((root - math.floor(root)) * scale))
  end
  local found, candidate = 0, 2
  while found < 64 do
    local prime = true
    for divisor = 2, math.floor(math.sqrt(candidate)) do
      if candidate % divisor == 0 then prime = false break end
    end
    if prime then
      found = found + 1
      local cube = candidate ^ (1 / 3)
      cube = cube - (cube * cube * cube - candidate) / (3 * cube * cube)
      K[found] = fraction(cube, 2 ^ 32)
      if found <= 8 then INITIAL[found] = fraction(math.sqrt(candidate), 2 ^ 32) end
    end
    candidate = candidate + 1
  end
end

local function sha256(text)
  local length = #text
  text = text .. "\128" .. string.rep("\0", (55 - length) % 64)
  text = text .. "\0\0\0\0" .. string.char(
    band(rshift(length * 8, 24), 255), band(rshift(length * 8, 16), 255),
    band(rshift(length * 8, 8), 255), band(length * 8, 255))
  local hash = {unpack(INITIAL)}
  local w = {}
  for start = 1, #text, 64 do
    for i = 1, 16 do
      local p, q, r, s = text:byte(start + 4 * i - 4, start + 4 * i - 1)
      w[i] = tobit(p * 16777216 + q * 65536 + r * 256 + s)
    end
    for i = 17, 64 do
      local x, y = w[i - 15], w[i - 2]
      w[i] = tobit(w[i - 16] + bxor(ror(x, 7), ror(x, 18), rshift(x, 3))
        + w[i - 7] + bxor(ror(y, 17), ror(y, 19), rshift(y, 10)))
    end
    local a, b, c, d, e, f, g, h = unpack(hash)
    for i = 1, 64 do
      local first = tobit(h + bxor(ror(e, 6), ror(e, 11), ror(e, 25))
        + bxor(band(e, f), band(bnot(e), g)) + K[i] + w[i])
      local second = tobit(bxor(ror(a, 2), ror(a, 13), ror(a, 22))
        + bxor(band(a, b), band(a, c), band(b, c)))
      h, g, f, e, d, c, b, a = g, f, e, tobit(d + first), c, b, a, tobit(first + second)
    end
    for i, value in ipairs({a, b, c, d, e, f, g, h}) do hash[i] = tobit(hash[i] + value) end
  end
  for i = 1, 8 do hash[i] = bit.tohex(hash[i]) end
  return table.concat(hash)
end

local function refuse(handle, reason)
  handle:respond({[":status"] = "401"}, reason)
end

-- Returns why the call is refused, or nil and the caller's key (nil if none is needed).
local function check(headers)
  local secret = headers:get("x-api-key")
  headers:remove("x-api-key")
  headers:remove("x-fruitstand-key")
  local path = headers:get(":path"):match("^[^?]*")
  if KEYS == nil or OPEN_PATHS[path] or path:find("^/grpc%.health%.v1%.Health/") then return nil end
  if secret == nil then return "an API key is needed" end
  if #secret > 256 then return "unknown API key" end
  local key = KEYS[sha256(secret)]
  if key == nil then return "unknown API key" end
  if key.disabled then return "the API key is disabled" end
  if key.expires ~= nil and os.time() >= key.expires then return "the API key has expired" end
  return nil, key
end

local MS_OF = {H = 3600000, M = 60000, S = 1000, m = 1, u = 0.001, n = 0.000001}

-- Give one try a share of the caller's deadline, so that a hung replica leaves time for another.
local function limit_try(headers)
  local number, unit = string.match(headers:get("grpc-timeout") or "", "^(%d+)([HMSmun])$")
  if number == nil then return end
  local ms = math.max(MIN_TRY_MS, math.floor(tonumber(number) * MS_OF[unit] * TRY_SHARE))
  headers:replace("x-envoy-upstream-rq-per-try-timeout-ms", string.format("%d", ms))
end

function envoy_on_request(handle)
  local headers = handle:headers()
  -- Envoy passes a request on when its script fails, so a failed check has to refuse it here.
  local checked, reason, key = pcall(check, headers)
  if not checked then return refuse(handle, "the API key cannot be checked") end
  if reason ~= nil then return refuse(handle, reason) end
  if key ~= nil then
    headers:add("x-fruitstand-key", key.name)
    handle:streamInfo():dynamicMetadata():set("fruitstand", "key_name", key.name)  -- for the log
  end
  limit_try(headers)
end

-- After gRPC's five-byte header, a ModelInferResponse starts with fields 1 and 2: model name and version.
function envoy_on_response(handle)
  if handle:headers():get("grpc-status") ~= nil then return end  -- an error has no response message
  for chunk in handle:bodyChunks() do
    local start = chunk:getBytes(0, math.min(chunk:length(), 64))
    if start:byte(6) == 10 and start:byte(7) ~= nil then
      local at = 8 + start:byte(7)
      if start:byte(at) == 18 and start:byte(at + 1) ~= nil then
        local version = string.match(start:sub(at + 2, at + 1 + start:byte(at + 1)), "^%d+$")
        if version then handle:streamInfo():dynamicMetadata():set("fruitstand", "model_version", version) end
      end
    end
    return
  end
end
