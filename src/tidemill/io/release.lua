#!lua flags=allow-oom
-- Give partitions back, where they are still ours. ARGV: token, then the partitions' names.
for at = 2, #ARGV do
  local record = KEYS[1] .. 'p:' .. ARGV[at]
  if redis.call('HGET', record, 'owner') == ARGV[1] then
    redis.call('HDEL', record, 'owner', 'tried_at', 'tried')
  end
end
return {'applied'}
