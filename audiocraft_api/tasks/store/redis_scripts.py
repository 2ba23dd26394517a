"""The Lua scripts of the Redis task store; each one is one atomic change. Executes nothing.

Every key begins with KEYS[1], a prefix that contains a hash tag, so that a cluster keeps all keys in one slot. ARGV[1]
is the time in seconds, or "" for the server's own clock. "By x" means: a sorted set with x as the score.

    task:<id>               hash of the task's fields
    numbers                 counter of accepted tasks
    unfinished, queued, processing
                            task ids by number
    finished                task ids by the time they finished
    owned:<owner>           task ids by number; the owner "" has the tasks without an owner
    idempotent:<length of owner>:<owner>:<key>
                            task id
    audio:<id>              packed audio inputs; `audio_bytes` is the sum of their lengths
    run_seconds             list of the run times of the last completed tasks
    webhooks                ids of tasks with a pending webhook, by the time it is due

Fair queueing uses four more:

    unfinished:<owner>      ids of the owner's unfinished tasks by number
    waiting                 owners with unfinished tasks, by the number of the owner's last claim
    turns                   hash of owner to the number of the owner's last claim; `turn` counts the claims
    shared_out              number up to which `unfinished` was copied into `unfinished:<owner>`

Older releases do not maintain these four. `index_new_tasks()` adds the tasks that they accepted, and entries of tasks
that they finished are removed when a script comes across them. The script of `claim` is in `redis_claim`.
"""

PRELUDE = """
local function key(name) return KEYS[1] .. name end
local function clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local now = clock()
local function stamp(seconds) return string.format('%.6f', seconds) end
local function task(id) return key('task:' .. id) end
local function field(id, name) return redis.call('HGET', task(id), name) end
local function change(id, ...)
  redis.call('HSET', task(id), 'updated', stamp(now), ...)
  redis.call('HINCRBY', task(id), 'version', 1)
end
local function is_claimable(id)
  local held_until = tonumber(field(id, 'held_until') or '0')
  -- the second case: the clock jumped back
  return held_until <= now or held_until > now + tonumber(field(id, 'hold_seconds') or '0')
end
local function has_lease(id, lease) return field(id, 'lease') == lease end
local function is_cancel_requested(id) return field(id, 'cancel_requested') == '1' end
local function owner_of(id) return field(id, 'owner') or '' end
-- Add tasks that are not in the keys of fair queueing yet: new ones, and those that older releases accepted.
local function index_new_tasks()
  local last = redis.call('GET', key('shared_out')) or '0'
  while true do
    local block = redis.call('ZRANGEBYSCORE', key('unfinished'), '(' .. last, '+inf', 'WITHSCORES', 'LIMIT', 0, 1000)
    if #block == 0 then break end
    for index = 1, #block, 2 do
      local owner = owner_of(block[index])
      last = block[index + 1]
      redis.call('ZADD', key('unfinished:' .. owner), last, block[index])
      -- Owners without a claim come first, in the order of their tasks: their scores are far below any claim's number.
      redis.call('ZADD', key('waiting'), 'NX', redis.call('HGET', key('turns'), owner) or last - 2^52, owner)
    end
    redis.call('SET', key('shared_out'), last)
  end
end
local function remove_from_owner(owner, id)
  redis.call('ZREM', key('unfinished:' .. owner), id)
  if redis.call('EXISTS', key('unfinished:' .. owner)) == 0 then redis.call('ZREM', key('waiting'), owner) end
end
local function is_unfinished(id) return redis.call('ZSCORE', key('unfinished'), id) end
local function finish(id, state, ...)
  change(id, 'state', state, 'finished', stamp(now), ...)
  redis.call('HDEL', task(id), 'lease', 'held_until', 'hold_seconds')
  redis.call('ZREM', key('unfinished'), id)
  remove_from_owner(owner_of(id), id)
  redis.call('ZREM', key('queued'), id)
  redis.call('ZREM', key('processing'), id)
  redis.call('ZADD', key('finished'), stamp(now), id)
  if field(id, 'webhook_url') then redis.call('ZADD', key('webhooks'), stamp(now), id) end
  local num_bytes = redis.call('STRLEN', key('audio:' .. id))
  if num_bytes > 0 then
    redis.call('DEL', key('audio:' .. id))
    redis.call('DECRBY', key('audio_bytes'), num_bytes)
  end
end
"""

SUBMIT = """
local id, max_queued, max_audio_bytes, max_unfinished, audio, owner, idempotency_key =
  ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
if redis.call('EXISTS', task(id)) == 1 then return {'duplicate', redis.call('HGETALL', task(id))} end
local idempotent_key = key('idempotent:' .. #owner .. ':' .. owner .. ':' .. idempotency_key)
if idempotency_key ~= '' then
  local duplicate = redis.call('GET', idempotent_key)
  if duplicate then return {'duplicate', redis.call('HGETALL', task(duplicate))} end
end
if max_unfinished > 0 and owner ~= '' then
  index_new_tasks()
  local unfinished = key('unfinished:' .. owner)
  if redis.call('ZCARD', unfinished) >= max_unfinished then
    for _, other in ipairs(redis.call('ZRANGE', unfinished, 0, -1)) do
      if not is_unfinished(other) then remove_from_owner(owner, other) end  -- finished by an older release
    end
  end
  local num_unfinished = redis.call('ZCARD', unfinished)
  if num_unfinished >= max_unfinished then return {'too many', num_unfinished} end
end
local num_queued = redis.call('ZCARD', key('queued'))
if num_queued >= max_queued then return {'full', num_queued} end
if #audio > 0 and tonumber(redis.call('GET', key('audio_bytes')) or '0') + #audio > max_audio_bytes then
  return {'full of audio', 0}
end
local number = redis.call('INCR', key('numbers'))
redis.call('HSET', task(id), 'id', id, 'number', number, 'version', 0, 'state', 'queued', 'created', stamp(now),
  unpack(ARGV, 9))
change(id)
redis.call('ZADD', key('unfinished'), number, id)
redis.call('ZADD', key('queued'), number, id)
redis.call('ZADD', key('owned:' .. owner), number, id)
index_new_tasks()
if idempotency_key ~= '' then redis.call('SET', idempotent_key, id) end
if #audio > 0 then
  redis.call('SET', key('audio:' .. id), audio)
  redis.call('INCRBY', key('audio_bytes'), #audio)
end
return {'accepted', redis.call('HGETALL', task(id))}
"""

FIND_BY_KEY = """
local owner = ARGV[2]
local id = redis.call('GET', key('idempotent:' .. #owner .. ':' .. owner .. ':' .. ARGV[3]))
return id and redis.call('HGETALL', task(id)) or {}
"""

NUM_CLAIMABLE = """
local num_claimable = 0
for _, id in ipairs(redis.call('ZRANGE', key('unfinished'), 0, tonumber(ARGV[2]) - 1)) do
  if is_claimable(id) then num_claimable = num_claimable + 1 end
end
return num_claimable
"""

HEARTBEAT = """
local id, lease, done, total = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if not has_lease(id, lease) then return 'lost' end
redis.call('HSET', task(id), 'held_until', stamp(now + tonumber(field(id, 'hold_seconds'))))
if field(id, 'num_frames_done') ~= done or field(id, 'num_frames_total') ~= total then
  change(id, 'num_frames_done', done, 'num_frames_total', total)
end
return is_cancel_requested(id) and 'canceled' or 'leased'
"""

FINISH = """
local id, lease, state = ARGV[2], ARGV[3], ARGV[4]
if not has_lease(id, lease) then return '' end
if is_cancel_requested(id) then
  finish(id, 'canceled')
  return 'canceled'
end
finish(id, state, unpack(ARGV, 6))
if state == 'completed' then
  redis.call('LPUSH', key('run_seconds'), stamp(math.max(now - tonumber(field(id, 'started')), 0)))
  redis.call('LTRIM', key('run_seconds'), 0, tonumber(ARGV[5]) - 1)
end
return state
"""

RELEASE = """
local id, lease, pause_seconds, uncounted = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if not has_lease(id, lease) then return 0 end
if is_cancel_requested(id) then
  finish(id, 'canceled')
  return 1
end
redis.call('HDEL', task(id), 'lease')
redis.call('HINCRBY', task(id), 'attempts', 0 - uncounted)  -- unary minus would format 0 as "-0"
redis.call('ZREM', key('processing'), id)
redis.call('ZADD', key('queued'), field(id, 'number'), id)
change(id, 'state', 'queued', 'held_until', stamp(now + pause_seconds), 'hold_seconds', stamp(pause_seconds),
  'num_frames_done', 0, 'num_frames_total', 0)
return 1
"""

REQUEST_CANCEL = """
local id = ARGV[2]
local state = field(id, 'state')
if state == 'queued' or (state == 'processing' and is_claimable(id)) then
  finish(id, 'canceled')
elseif state == 'processing' and not is_cancel_requested(id) then
  change(id, 'cancel_requested', 1)
end
return redis.call('HGETALL', task(id))
"""

CLAIM_WEBHOOK = """
local is_busy = {}
for index = 3, #ARGV do is_busy[ARGV[index]] = true end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('webhooks'), '-inf', stamp(now))) do
  if not is_busy[field(id, 'webhook_host')] then
    redis.call('HINCRBY', task(id), 'webhook_attempts', 1)
    redis.call('ZADD', key('webhooks'), stamp(now + tonumber(ARGV[2])), id)
    return redis.call('HGETALL', task(id))
  end
end
return {}
"""

PAUSE_WEBHOOK = """
local due = stamp(now + tonumber(ARGV[3]))
redis.call('ZADD', key('webhooks'), 'XX', due, ARGV[2])
return 1
"""

EXPIRE = """
local ids = redis.call('ZRANGEBYSCORE', key('finished'), '-inf', '(' .. ARGV[2], 'LIMIT', 0, tonumber(ARGV[3]))
local results = {}
for _, id in ipairs(ids) do
  local owner, idempotency_key = field(id, 'owner') or '', field(id, 'idempotency_key')
  results[#results + 1] = field(id, 'result') or ''
  if idempotency_key then redis.call('DEL', key('idempotent:' .. #owner .. ':' .. owner .. ':' .. idempotency_key)) end
  redis.call('ZREM', key('owned:' .. owner), id)
  if redis.call('EXISTS', key('owned:' .. owner)) == 0 then redis.call('HDEL', key('turns'), owner) end
  redis.call('ZREM', key('finished'), id)
  redis.call('ZREM', key('webhooks'), id)
  redis.call('DEL', task(id))
end
return results
"""
