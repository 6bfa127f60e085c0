-- Bind a key, unless it is bound to another generation than the one whose place this claim takes, or by this attempt or a
-- later one; returns what it is bound to.
--
-- KEYS[1]  the key
-- ARGV[1]  the claim, as JSON
-- ARGV[2]  its attempt
-- ARGV[3]  ttl in ms

local bound = redis.call('GET', KEYS[1])
if bound then
  local standing = cjson.decode(bound)
  if (standing.attempt or 0) >= tonumber(ARGV[2]) or standing.id ~= cjson.decode(ARGV[1]).previous then
    return bound
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
