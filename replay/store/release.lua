-- Unbind a key, if it is bound by this claim: another one, perhaps with the same generation's id, may have it by now.
--
-- KEYS[1]  the key
-- ARGV[1]  the claim's token

local bound = redis.call('GET', KEYS[1])
if bound then
  local standing = cjson.decode(bound)
  if (standing.token or standing.id) == ARGV[1] then
    redis.call('DEL', KEYS[1])
  end
end
