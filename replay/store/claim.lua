-- Bind a key, unless it is bound by this attempt or a later one; returns what it is bound to.
--
-- KEYS[1]  the key
-- ARGV[1]  the claim, as JSON
-- ARGV[2]  its attempt
-- ARGV[3]  ttl in ms

local bound = redis.call('GET', KEYS[1])
if bound and (cjson.decode(bound).attempt or 0) >= tonumber(ARGV[2]) then
  return bound
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
