#!lua flags=allow-oom
-- Take every key of an app away. Until the end nobody can claim; `unfinished` outlives who was stopped on the way, and
-- whoever finds it begins anew. ARGV: step, token of who empties, its lifetime in ms, then the keys to delete.
local prefix, step, token, lifetime = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local call = redis.call
local restoring, unfinished = prefix .. 'restoring', prefix .. 'unfinished'
local holder = call('GET', restoring)
if step == 'begin' then
  if holder then
    return {'busy'}
  end
  call('SET', restoring, token, 'PX', lifetime)
  call('SET', unfinished, '1')
  call('DEL', prefix .. 'incarnation')
  return {'begun'}
end
if holder ~= token then
  return {'interrupted'}
end
call('PEXPIRE', restoring, lifetime)
if step == 'delete' then
  call('UNLINK', unpack(ARGV, 4))
else -- end
  call('DEL', unfinished, restoring)
end
return {'done'}
