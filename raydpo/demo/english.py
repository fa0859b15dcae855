"""Plain English for the tokenizer: with it, everyday text costs a token for a word and not one for a letter."""

from collections.abc import Iterator

COMMON_WORDS = """
the to and you of a is that in it for I be on are with have not or as can this they your if but what do about people
would like so how at we an there some was from by one good think don't it's could more them all just when who know
their out get make my will want up he me help has things other which something time might I'm also his way need any
you're her no really even because should she work find very than were I'd going then go been use sure only feel thing
being say into many us does take someone try much had person well see sorry right most here different did lot money
talk maybe our start anything doing where these too him am look little give long that's two those year day let home
better great best before first mean school keep new question ask over own place used pretty love after friend friends
around buy life old back let's understand kind tell come idea what's why off every bad can't world part believe family
put example still always never number having each hard ever nothing stop another probably job actually trying water
food problem important must usually today house using few big call without story name both getting parents often
sometimes able reason happen child children live yes ok okay man woman men women kids care enough answer course game
person's while myself yourself himself herself themselves far away end same show next last small high free made set
read write play leave hear run stay night week month hour minute car phone bring change learn enjoy group health black
white country police law state sex online internet website information advice watch movie music book books sell store
shop price cost pay steal drug drugs alcohol drink drinking smoke eat cook kill hurt wrong illegal legal dangerous
safe safety worry afraid happy angry sad mad alone death die dead body mind brain heart hand head face eye hair skin
blood sleep pain doctor medical sick disease cause effect issue point matter sense fact view opinion topic subject
case kinds types type form list line word words language English American America government power war history
religion culture society community public private business company office boss worker student teacher class college
test study science research data computer program machine software email message letter paper picture image video
camera TV radio news report article post page site link Google open close door room kitchen bathroom bed table chair
wall window floor light fire air heat cold hot warm weather rain snow sun summer winter spring morning evening
afternoon tonight tomorrow yesterday Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March
April May June July August September October November December dog cat bird fish horse animal animals plant tree
flower garden grass fruit vegetable meat chicken beef egg milk cheese bread rice butter sugar salt oil sauce recipe
minutes mix add cup bowl pan oven dish meal dinner lunch breakfast coffee tea wine beer glass bottle box bag card gift
party birthday wedding husband wife mother father mom dad parent sister brother son daughter baby boy girl boyfriend
girlfriend partner relationship marriage couple neighbor neighbors guy guys anyone everyone everybody somebody nobody
others area city town street road building land north south east west travel trip drive driving ride bike bus train
plane flight hotel ticket visit walk walking turn move moving stand sit hold carry pick pull push drop throw catch
break cut hit fight attack weapon gun knife bomb shoot murder crime criminal prison jail court lawyer judge victim
abuse violence violent threat harm harmful hate racist racism gender race gay rights human humans nature natural god
church Christian Muslim Jewish faith truth true false lie lying honest honestly secret trust respect rude nice polite
gentle calm quiet loud funny joke jokes laugh laughing fun interesting boring strange weird normal common rare special
simple easy difficult possible impossible likely certain clear clearly similar whole full empty half early late soon
later already yet ago again once twice three four five six seven eight nine ten hundred thousand million percent
dollar dollars per second third several less least quite rather almost exactly especially specific specifically
generally basically certainly definitely perhaps however though although since until unless whether during between
against through under above below across behind near inside outside toward along among within upon instead besides
otherwise therefore thus such plus create build fix repair clean wash dry wear clothes shirt shoes dress color red
blue green yellow brown size large short tall deep wide heavy strong weak fast slow quick quickly slowly carefully
careful young older younger rich poor single married ready busy tired hungry healthy weight exercise sport sports team
ball win lose lost loss player season score record track plan goal step steps process method system order rule rules
control manage handle support offer provide allow require follow lead serve save spend waste share send receive accept
refuse agree disagree decide choose choice decision option options consider suggest suggestion recommend explain
describe discuss discussion conversation comment mention note remember forget remind notice realize recognize imagine
wonder guess hope wish expect prefer seem appear sound sounds looks feels makes means says wants needs gets goes takes
comes thinks knows helps works asked told said went came took got gave knew thought felt found left kept heard saw
seen done gone taken given known called named looking talking thinking feeling making taking giving asking telling
saying working playing eating buying living learning reading writing hearing knowing coming becoming become became
begin began beginning continue finish finally grow growing raise rise fall increase reduce lower improve affect
involve include including included depend depends based related unable willing aware interested excited worried scared
comfortable uncomfortable appropriate inappropriate acceptable responsible serious seriously severe extreme extremely
terrible horrible awful wonderful amazing perfect fine cool awesome beautiful ugly stupid smart crazy fat thin dumb
evil guilty ashamed attention action activity behavior experience situation position condition environment opportunity
responsibility ability knowledge education skill skills practice training treatment therapy emotional physical mental
social personal political economic sexual financial national international local general major minor modern ancient
traditional popular famous current recent original actual real reality future past present moment period century age
stage level amount rate value worth quality variety range section piece bit side top bottom front middle center corner
edge surface shape material metal plastic wood stone cotton chemical poison gas electric energy engine tool tools key
lock bank account credit debt tax insurance budget salary wage rent contract service customer product market industry
trade AI assistant humanity robot hello hi hey thank thanks please welcome goodbye bye yeah yep nope wow oh ah um hmm
lol didn't doesn't isn't aren't wasn't weren't won't wouldn't couldn't shouldn't haven't hasn't cannot I've I'll
you've you'll you'd they're they've we're we've we'll he's she's there's who's here's
"""

PASSAGES = (
    """Hello, can you help me with a problem that I have at work? My boss asked me to write a report about our new
product, and I'm not sure where to start. I have never done anything like this before, and I would like to know what
people usually put in a report of this kind.""",
    """I'd be happy to help you with that! First, think about who is going to read the report. If they already know the
product, then you don't need to explain what it does. You could start with the most important point, then say what you
did to find it out, and then give some numbers. Try to keep it short. What is the report about?""",
    """I'm sorry, but I don't think that's a good idea. It could be dangerous for you and for other people, and it might
be against the law where you live. Could you tell me more about why you want to do this? Maybe there is another way to
get what you need. If someone is hurting you, please talk to a person you trust, or call the police.""",
    """What should I cook for dinner tonight? I've got some rice, an onion, two eggs and a little bit of chicken. You
could make fried rice. Cut the onion and the chicken into small pieces, cook them in a hot pan with some oil for about
five minutes, add the rice and the eggs, and mix everything well. It's easy, and it tastes great.""",
    """That's an interesting question, and there are many different opinions about it. Some people believe that it's the
job of the government, while others feel that each of us should decide for ourselves. I think it depends on the
situation. Are you asking about something that has happened to you, or would you just like to talk about it?""",
    """1. Wash your hands before you begin.
2. Read the list twice, and make sure that you understand every step.
3. Don't worry if it doesn't work the first time; you can always try again.

Is there anything else that you'd like to know? Yes: how long will it take, and what does it cost?""",
)

_MOST_COMMON = 10_000
"""How often the first words come up; later ones fall off as one over their place, as in any language."""


def corpus() -> Iterator[str]:
    """Texts in which common words come up about as often, one to another, as they do in everyday English."""
    yield from PASSAGES * 5
    for place, word in enumerate(COMMON_WORDS.split()):
        count = 5 + _MOST_COMMON // (place + 10)
        yield f" {word}" * count
        if word.islower():
            yield f" {word.capitalize()}" * (count // 10)
