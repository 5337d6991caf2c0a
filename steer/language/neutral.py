"""Plain texts on nothing in particular: what a steered model must still find as likely as before."""

TEXTS = (
    "The kettle stands on the stove in the kitchen. When the water boils, the lid begins to rattle, and a thin cloud "
    "of steam rises towards the window. Next to it lie two cups, a spoon and a small tin of tea.",
    "A bicycle has two wheels, a frame and a chain. The rider pushes the pedals, the chain turns the rear wheel, and "
    "the front wheel is steered by the handlebars. Most bicycles have brakes on both wheels and a bell.",
    "The river begins in the hills north of the town and flows south for about forty kilometres before it reaches the"
    " sea. In spring it carries melting snow, and its water is cold and brown; in late summer it is shallow and "
    "clear.",
    "To plant a row of beans, dig a shallow furrow, lay the seeds a hand's width apart, and cover them with loose "
    "soil. Water them in the evening. After about ten days the first leaves should appear above the ground.",
    "The library opens at nine in the morning and closes at six. Books may be kept for three weeks, and the loan can "
    "be extended once. Newspapers and maps can be read in the room on the first floor, but they cannot be taken home.",
    "Glass is made by melting sand together with soda and lime. The mixture becomes liquid at a high temperature and "
    "can then be blown, pressed or drawn into sheets. It is cooled slowly, since it would crack otherwise.",
    "The train from the coast arrives at platform four. It usually has eight carriages, two of which are for "
    "passengers with bicycles. The journey takes just under three hours, with stops in five smaller towns.",
    "Honey bees live in colonies of several thousand animals. Workers collect nectar from flowers and store it in "
    "cells of wax, where its water evaporates until it thickens. In winter the colony feeds on these stores.",
    "The meeting was moved from Tuesday to Thursday because the room was being painted. Everyone who had signed up "
    "got a short message with the new time. The list of topics stayed the same: the budget, the repairs and the "
    "summer fair.",
    "A map shows the land from above, at a fixed scale. If one centimetre stands for one kilometre, a walk of five "
    "kilometres is as long as a finger. Lines of equal height lie close together where the ground is steep.",
    "The old clock in the hall is wound once a week. Its pendulum swings once a second, and every hour a small hammer"
    " strikes a bell. In dry weather it runs a little fast, and the caretaker sets it back by a minute or two.",
    "Bread needs flour, water, salt and yeast. The dough is kneaded until it is smooth and then left in a warm place "
    "for an hour, where it doubles in size. It is baked in a hot oven until the crust is brown and sounds hollow.",
)
