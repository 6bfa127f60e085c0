-- Bind a key, unless it is bound by another claim than the one that this takes over; returns what it is bound to.
--
-- KEYS[1]  the key
-- ARGV[1]  the claim, as JSON
-- ARGV[2]  the token of the claim that it takes over; '' for none
-- ARGV[3]  ttl in ms

local bound = redis.call('GET', KEYS[1])
if bound then
  local standing = cjson.decode(bound)
  if (standing.token or standing.id) ~= ARGV[2] then
    return bound
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
